"""What the files of measurements hold, for those who write and who read them."""

THROUGHPUT_SCHEMA = 1
PROFILE_SCHEMA = 1

# Times as long as without the profiler, which costs 1 to 15 % on a CPU: then the shares are of other work too. On CUDA the
# profiler slows the host alone, not the kernels.
DISTURBED = 1.25

# The loops; ratios name them.
OURS, BARE = "ours", "bare step"
CONVENTIONAL, CONVENTIONAL_BEST = "conventional, fp32", "conventional, best flags"
EAGER = "eager on device-resident tensors, best flags"
NOT_COMPILED, NOT_FUSED_BLOCKS = "ours, not compiled", "ours, blocks not fused"
# The next eight are neither compiled nor have fused blocks. They stand beside one of these two where "ours" is: compiling takes
# half a minute each time, and fused blocks leave no layer to compute otherwise.
NOT_DETERMINISTIC, REFERENCE_DEPTHWISE = "ours, not deterministic", "ours, reference depthwise"
REFERENCE_PATCHES = "ours, reference patch convolutions"
DEFAULT_LAYOUT, NOT_FUSED = "ours, not channels last", "ours, AdamW not fused"
MEMORY_RETURNED = "ours, freed memory returned"
LIBRARY_BF16 = "ours, bf16 as the library computes it"
IN_FP32 = "ours, in fp32"
NO_GRAPH = "ours, no CUDA graph"
COMPILED = "ours, compiled"
LOOPS = (
    OURS,
    BARE,
    EAGER,
    CONVENTIONAL_BEST,
    CONVENTIONAL,
    IN_FP32,
    NOT_COMPILED,
    NOT_FUSED_BLOCKS,
    NOT_DETERMINISTIC,
    REFERENCE_DEPTHWISE,
    REFERENCE_PATCHES,
    DEFAULT_LAYOUT,
    NOT_FUSED,
    MEMORY_RETURNED,
    LIBRARY_BF16,
    NO_GRAPH,
    COMPILED,
)
PLAIN = (REFERENCE_DEPTHWISE, REFERENCE_PATCHES, DEFAULT_LAYOUT, NOT_FUSED, MEMORY_RETURNED, LIBRARY_BF16, NOT_DETERMINISTIC)
RATIOS = (
    (OURS, BARE),
    (OURS, CONVENTIONAL),
    (OURS, CONVENTIONAL_BEST),
    (IN_FP32, CONVENTIONAL),
    (OURS, EAGER),
    (OURS, NO_GRAPH),
    (OURS, NOT_COMPILED),
    (OURS, NOT_FUSED_BLOCKS),
    (COMPILED, OURS),
    *((ours, other) for ours in (OURS, NOT_COMPILED, NOT_FUSED_BLOCKS) for other in PLAIN),
)
