"""The codes of caveats, each with its title, meaning, weight and remedy."""

from __future__ import annotations

from auditor.rules.rule import Rule

CAVEATS: tuple[Rule, ...] = (
    Rule(
        "GA301",
        "The head's gradients do not sum to zero over the classes",
        "For softmax cross-entropy these sums vanish for any batch. They do not here, beyond "
        "the precision of the dump.",
        "The dump was noised, pruned or quantised, its loss is another one, or it belongs to "
        "another model: nothing can be proved, and failing to rebuild the data means nothing.",
        "Check that model and dump belong together and that the loss is cross-entropy.",
    ),
    Rule(
        "GA302",
        "Something had to be assumed",
        "A fact about the client's step was neither given nor in the dump.",
        "If the assumption is wrong, attacks fail for the wrong reason.",
        "Say it with the flag named in the message, or write the dump with auditor.capture.",
    ),
    Rule(
        "GA303",
        "Dropout was active",
        "In training mode dropout draws a random mask that the dump does not hold.",
        "The gradient cannot be derived again, so no input can be verified by it; what the rows of "
        "a linear layer show by themselves can.",
        "Audit a dump made with dropout off, or treat the result as a lower bound.",
    ),
    Rule(
        "GA304",
        "The dump holds no gradient for some parameters",
        "Frozen or withheld parameters have no entry.",
        "Attacks use what is there; a withheld layer may hide a leak that its owner still sends.",
        "Make sure that these parameters really are not sent.",
    ),
    Rule(
        "GA305",
        "The batch size is unknown",
        "Neither the dump nor the command line says how many samples made the gradient.",
        "Without it, inputs cannot be rebuilt and label counts have no upper bound.",
        "Say it with --batch-size, or write the dump with auditor.capture.",
    ),
    Rule(
        "GA306",
        "The gradient is larger than this batch can make it",
        "Under mean reduction the negative part of the head's bias gradient sums to 1 at most.",
        "The dump was summed, accumulated or scaled: counts derived from it would be wrong.",
        "Say --reduction sum, or unscale the gradient before it is dumped.",
    ),
    Rule(
        "GA307",
        "A flag overrides what the dump says of itself",
        "The dump's own metadata and the command line differ; the command line was used.",
        "One of the two is wrong, and attacks built on the wrong one fail.",
        "Drop the flag if the dump is right.",
    ),
    Rule(
        "GA308",
        "The proved label statements contradict one another",
        "The lower bounds add up to more samples than the batch holds.",
        "The batch size or the reduction is not what was said; the counts were withdrawn.",
        "Check --batch-size and --reduction.",
    ),
    Rule(
        "GA309",
        "The dump was made in another mode than was said",
        "The gradients of the layers before batch norms show whether the batch's own statistics "
        "were used; here they contradict --mode or the dump's metadata.",
        "Attacks and checks differentiate the model in the wrong mode: what they fail to rebuild "
        "means nothing.",
        "Say --mode as the gradient shows it. Frozen batch norms count as evaluation mode.",
    ),
    Rule(
        "GA310",
        "Model and dump do not belong together",
        "Sums that are zero for every batch of this model (units that ReLU joins, batch norms, the "
        "classifier's own prediction) are not, while those that hold for any weights are.",
        "The dump was made with other weights, so the audit looked at the wrong model: what it did "
        "not find means nothing.",
        "Give the weights from before the client's step, of the same model and round.",
    ),
    Rule(
        "GA311",
        "Model and dump fit each other only roughly",
        "The sums that need the model's weights are off by more than rounding, but by little.",
        "Weights of one step earlier or later, or a client that computed in TF32 or bfloat16, do "
        "that. Attacks that need every digit fail then.",
        "Give the weights from before the client's step; dump from a run in single precision.",
    ),
    Rule(
        "GA312",
        "The gradient is turned around, or its labels were smoothed",
        "A batch has no more classes with a negative bias gradient than it has samples.",
        "A change of weights has the opposite sign of a gradient: read as one, every statement "
        "about labels would be wrong.",
        "Say --kind update for weights after training minus weights before, or --label-smoothing.",
    ),
    Rule(
        "GA313",
        "The labels were smoothed otherwise than was said",
        "The classifier's gradient is explained by this label smoothing and by no other.",
        "Attacks differentiate the loss that was said, and statements about labels rest on it.",
        "Say --label-smoothing as the message has it.",
    ),
    Rule(
        "GA314",
        "The gradient is a multiple of what was said",
        "The classifier's gradient is that of such a batch, times a factor.",
        "It was clipped, summed instead of averaged, accumulated or scaled; attacks that compare "
        "sizes fail then.",
        "Say --reduction sum if it was summed, or unscale the gradient before it is dumped.",
    ),
    Rule(
        "GA315",
        "The gradient is not that of softmax cross-entropy alone",
        "The sums over the classes are not zero, but not as noise leaves them.",
        "Weight decay or another loss is in the gradient, and no attack differentiates that.",
        "Dump the gradient of the loss itself, before weight decay; audit with cross-entropy.",
    ),
    Rule(
        "GA316",
        "The gradient holds more samples than was said",
        "The gradient of a linear layer is one outer product a sample; there are more of them.",
        "A larger batch, several steps or several clients are in it. What was not rebuilt means "
        "nothing.",
        "Say the right --batch-size; a sum over clients is a batch of all their samples.",
    ),
    Rule(
        "GA317",
        "Learning rate or local steps were estimated, or could not be",
        "Nobody said how the client trained. The counts of steps were tried in turn; the one with "
        "which pictures explain the update best was used.",
        "Claims that rest on an estimate are verified at best, never proved. Without one, attacks "
        "that simulate the steps cannot look.",
        "Say --lr and --local-steps.",
    ),
    Rule(
        "GA318",
        "Buffers of the update do not fit the model",
        "Running statistics or step counters in the update have another shape than the model's, "
        "are not numbers, or belong to a batch norm that the model does not have.",
        "The parameters are audited without them. Parameters that fit while buffers do not may "
        "mean that the model is another one.",
        "Give the model that the client trained, or leave the buffers out.",
    ),
    Rule(
        "GA319",
        "The auxiliary pictures do not show every class",
        "The folder or file of --aux holds pictures of some of the model's classes only.",
        "Labels that are not proved are estimated with simulated clients that hold these classes "
        "alone.",
        "Add pictures of the classes that are missing; a few each will do.",
    ),
    Rule(
        "GA320",
        "A negative control recovered as much",
        "The same attack was run on a gradient that cannot hold the claimed data, and came back "
        "with as much.",
        "The claim may say more about the attack and the model than about the client's data.",
        "Give the truth with --truth if you have it, or run again with --preset deep.",
    ),
    Rule(
        "GA321",
        "The gradient is that of one sample, not of the batch that was said",
        "The head's gradient is one outer product, and its bias is what this model predicts of "
        "one sample.",
        "Attacks that read a single sample exactly do not run for a batch.",
        "Say --batch-size 1 if the gradient is of one sample.",
    ),
    Rule(
        "GA322",
        "The gradient was multiplied with a loss scale",
        "Mixed-precision training multiplies the loss with a power of two (GradScaler begins with "
        "65536); this dump was made before that was taken out.",
        "The dump was divided by the power of two that fits. Of a batch it is a guess; if it is "
        "wrong, attacks that compare sizes fail.",
        "Call scaler.unscale_(optimizer) before the gradient is dumped.",
    ),
    Rule(
        "GA323",
        "The truth is not what made the dump",
        "The gradient of the samples in the truth file, derived again, is not the dump.",
        "What is measured against other samples says nothing, and would make a leak look small. "
        "The verdict rests on the dump alone.",
        "Give the samples of this very step, as the client had them after augmentation, or mend "
        "--mean, --std, --mode or --reduction.",
    ),
    Rule(
        "GA324",
        "Buffers that came along were not used",
        "Running statistics of batch norm are in the update, but what they say of one batch does "
        "not follow from them.",
        "They hold what the client's batches have in common all the same, and attacks did without.",
        "Say --batch-size and --local-steps if they are missing. Do not send running statistics.",
    ),
    Rule(
        "GA325",
        "The contrast of the pictures is open",
        "Batch norm in training mode divides what it is given by its spread. The gradient of the "
        "rebuilt pictures equals the dump at another contrast as well.",
        "Restarts may agree on a contrast that they took from where they began, so that nothing "
        "confirms it. What the pictures show is not in doubt by this.",
        "Nothing to mend. Statistics of the batch, when they are sent along, decide it.",
    ),
)
