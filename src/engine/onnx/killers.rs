//! Operators that end or freeze the process: what each does, when, and what is done about it.
//!
//! Each row was found by running ONNX Runtime 1.31 (CPU) on the operator alone with sizes of 0, 1, odd and huge numbers
//! and values at the ends of their ranges, and has a model of its own in `tests/fixtures/killers`. No exception can be
//! caught there: the C++ library raises a signal, or spins where no request can stop it. Run again with 1.32,
//! `Attention`, `LinearAttention`, `MoE`, `QMoE`, `FusedMatMul` (and a `MatMul` that becomes one) and
//! `MatMulIntegerToFloat` end nothing any more; their rows stay, as any library from 1.24 on may be used
//! (`ORT_DYLIB_PATH`). The operators that are new in 1.32 check their operands. Always true:
//! - A row is found wherever the operator stands: in the main graph, in subgraphs, in functions that are called.
//! - What a request can only do with an input that has a dimension of 0 is a [`Hazard`]: such requests are refused, the
//!   model is served. What it can do with other inputs is an error: the model is refused.
//!
//! Not here: integer division (`division`, on whose walk nodes are judged), what the proof finds of a whole model
//! (`lifecycle::proof`), the refusal of requests (`model::Guards`).

use super::{
    OnnxError,
    division::{Facts, LOW, MOVED, SHAPED, VARIES},
    shown,
};

/// A row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Killer {
    /// The operator's domain, empty for ONNX's own.
    pub domain: &'static str,
    /// Its name.
    pub operator: &'static str,
    /// The harm it does, and when.
    pub reason: &'static str,
    /// The protection against it.
    pub remedy: Remedy,
}

/// The protection against an operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// Inputs with a dimension of 0 are kept from the version.
    Guarded,
    /// Guarded where no proof shows which empty inputs run well, and where an operand is a transposed one whose first
    /// dimension has moved; the latter only where a request chooses more than the first dimension of each input.
    GuardedIfMoved,
    /// Guarded where it has an axis; harmless without.
    GuardedWithAxis,
    /// Guarded where its kernel has three dimensions or more, or does not say; harmless below.
    GuardedInSpace,
    /// Guarded where the operand is an input of the model whose last two dimensions are declared and equal, or where no
    /// input has an open dimension. Refused elsewhere.
    GuardedIfSquare,
    /// Guarded where a request chooses nothing but the first dimension of each input: then the proof shows the other
    /// sizes. Refused elsewhere.
    GuardedIfFixed,
    /// Guarded where the shape of the second operand follows from shapes. Refused where it follows from values.
    GuardedKernel,
    /// Refused unless these operands, where they are given, follow from no value of a request; guarded then.
    GuardedIfFrozen(&'static [usize]),
    /// Refused unless these operands, where they are given, are constants above 0; guarded then.
    GuardedIfConstant(&'static [usize]),
}

/// An operator of a model that ends or freezes the process on empty inputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hazard {
    /// The operator's name, with its domain unless that is ONNX's own.
    pub operator: String,
    /// The harm it does, and when.
    pub reason: &'static str,
    /// True if the proof settles which empty inputs run well.
    pub settled_by_proof: bool,
    /// True if it may meet an empty tensor although no input is empty: sizes follow from values.
    pub by_values: bool,
}

const EMPTY: &str = "an operand with a dimension of 0 ends the process";

const fn guarded(domain: &'static str, operator: &'static str, reason: &'static str) -> Killer {
    Killer { domain, operator, reason, remedy: Remedy::Guarded }
}

const fn frozen(operator: &'static str, operands: &'static [usize]) -> Killer {
    let reason = "scales and zero points of an unfit size, or an operand with a dimension of 0, end the process";
    Killer { domain: MICROSOFT, operator, reason, remedy: Remedy::GuardedIfFrozen(operands) }
}

const MICROSOFT: &str = "com.microsoft";
const KERNEL: &str = "a kernel with a dimension of 0 is never left again, or ends the process";

/// The table.
pub const KILLERS: &[Killer] = &[
    guarded("", "GRU", "a batch of 0 or 0 steps ends the process (SIGABRT)"),
    guarded("", "LSTM", "a batch of 0 ends the process (SIGABRT)"),
    guarded("", "RNN", "it shares what ends the process for LSTM"),
    guarded("", "Attention", "0 heads, or heads of size 0, end the process (SIGFPE)"),
    guarded("", "InstanceNormalization", "a spatial dimension of 0 ends the process (SIGSEGV)"),
    guarded("ai.onnx.ml", "FeatureVectorizer", "0 rows end the process (SIGABRT)"),
    guarded(MICROSOFT, "FusedMatMul", EMPTY),
    guarded(MICROSOFT, "GroupQueryAttention", "a batch of 0 ends the process (SIGFPE)"),
    guarded(MICROSOFT, "MultiHeadAttention", "heads of size 0 end the process (SIGFPE)"),
    guarded(MICROSOFT, "LinearAttention", "heads of size 0 end the process (SIGFPE)"),
    guarded(MICROSOFT, "MoE", "a hidden size of 0 ends the process (SIGFPE)"),
    guarded(MICROSOFT, "QMoE", "a hidden size of 0 ends the process (SIGFPE)"),
    guarded(MICROSOFT, "RotaryEmbedding", "heads of size 0 end the process (SIGSEGV)"),
    guarded(MICROSOFT, "SkipLayerNormalization", "a skip of 0 rows ends the process (SIGFPE)"),
    guarded(
        MICROSOFT,
        "SkipSimplifiedLayerNormalization",
        "a skip of 0 rows ends the process (SIGFPE)",
    ),
    guarded("", "Einsum", "an operand with a dimension of 0 ends the process (SIGFPE)"),
    Killer {
        domain: "",
        operator: "MatMul",
        reason: "after a Transpose it becomes a FusedMatMul, where an operand with a dimension of 0 ends the process",
        remedy: Remedy::GuardedIfMoved,
    },
    Killer {
        domain: "",
        operator: "Unique",
        reason: "with an axis, a tensor with a dimension of 0 ends the process (SIGABRT)",
        remedy: Remedy::GuardedWithAxis,
    },
    Killer {
        domain: "",
        operator: "ConvTranspose",
        reason: "in three dimensions, one of 0 ends the process (SIGSEGV)",
        remedy: Remedy::GuardedInSpace,
    },
    Killer { domain: "", operator: "Conv", reason: KERNEL, remedy: Remedy::GuardedKernel },
    Killer {
        domain: MICROSOFT,
        operator: "FusedConv",
        reason: KERNEL,
        remedy: Remedy::GuardedKernel,
    },
    frozen("DynamicQuantizeLSTM", &[8, 9, 10, 11]),
    frozen("DynamicQuantizeMatMul", &[2, 3]),
    frozen("MatMulIntegerToFloat", &[2, 3, 4, 5]),
    frozen("QAttention", &[3, 4, 6, 7]),
    Killer {
        domain: "",
        operator: "STFT",
        reason: "a frame_length or frame_step of 0 ends the process (SIGFPE)",
        remedy: Remedy::GuardedIfConstant(&[1, 3]),
    },
    Killer {
        domain: MICROSOFT,
        operator: "Inverse",
        reason: "a matrix that is not square ends the process (SIGSEGV)",
        remedy: Remedy::GuardedIfSquare,
    },
    Killer {
        domain: MICROSOFT,
        operator: "QLinearAveragePool",
        reason: "an image smaller than its kernel ends the process (SIGFPE)",
        remedy: Remedy::GuardedIfFixed,
    },
];

/// The sizes of a model's inputs that a request can choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Sizes {
    /// Nothing.
    Fixed,
    /// First dimensions.
    Rows,
    /// Others, too.
    Open,
}

/// A node, as far as the table asks about it.
pub(super) struct Judged<'n> {
    /// Domain and name.
    pub(super) operator: (&'n str, &'n str),
    /// The name of its first output.
    pub(super) output: &'n str,
    pub(super) names: &'n [&'n str],
    pub(super) operands: &'n [Facts],
    pub(super) has_axis: bool,
    pub(super) kernel_rank: Option<usize>,
    /// True if the first operand is an input of the model that is declared to hold square matrices.
    pub(super) is_square: bool,
    pub(super) sizes: Sizes,
}

impl Judged<'_> {
    /// True if an operand has one of these facts.
    fn may(&self, position: usize, facts: Facts) -> bool {
        self.operands.get(position).is_some_and(|operand| operand & facts != 0)
    }

    /// True if the proof shows which empty inputs the operator runs well.
    fn is_settled_by_proof(&self, row: &Killer) -> bool {
        // Where only rows are open, the proof runs what a request without rows would.
        let is_proven_exactly =
            self.sizes != Sizes::Open && !self.may(0, SHAPED) && !self.may(1, SHAPED);
        row.remedy == Remedy::GuardedIfMoved
            && (is_proven_exactly || !self.may(0, MOVED) && !self.may(1, MOVED))
    }

    /// Refuses the model, or adds to what requests must be kept from it.
    pub(super) fn judge(&self, hazards: &mut Vec<Hazard>) -> Result<(), OnnxError> {
        let is_it = |row: &&Killer| (row.domain, row.operator) == self.operator;
        let Some(row) = KILLERS.iter().find(is_it) else { return Ok(()) };
        let refused = |advice| OnnxError::Killer {
            operator: row.operator,
            output: shown(self.output),
            reason: row.reason,
            advice,
        };
        let may = |position, facts| self.may(position, facts);
        match row.remedy {
            Remedy::GuardedWithAxis if !self.has_axis => return Ok(()),
            Remedy::GuardedInSpace if self.kernel_rank.is_some_and(|rank| rank < 3) => {
                return Ok(());
            }
            Remedy::GuardedIfSquare if !self.is_square && self.sizes != Sizes::Fixed => {
                return Err(refused(
                    "give it an input of the model whose last two dimensions are declared and equal",
                ));
            }
            Remedy::GuardedIfFixed if self.sizes == Sizes::Open || may(0, SHAPED) => {
                return Err(refused(
                    "declare every dimension of the model's inputs but the first, or leave the operator out",
                ));
            }
            // What no request has a part in was run by the proof.
            Remedy::GuardedKernel if !may(1, VARIES | SHAPED) => return Ok(()),
            Remedy::GuardedKernel if may(1, SHAPED) => {
                return Err(refused(
                    "make its kernel an initializer, or let the kernel's shape follow from shapes alone",
                ));
            }
            Remedy::GuardedIfFrozen(operands)
                if operands.iter().any(|position| may(*position, VARIES | SHAPED)) =>
            {
                return Err(refused("make its scales and zero points initializers"));
            }
            Remedy::GuardedIfConstant(operands) => {
                let is_given =
                    |position: usize| self.names.get(position).is_some_and(|name| !name.is_empty());
                let loose = |position: &&usize| {
                    is_given(**position) && may(**position, VARIES | SHAPED | LOW)
                };
                if operands.iter().any(|position| loose(&position)) {
                    return Err(refused("make frame_step and frame_length constants above 0"));
                }
            }
            _ => {}
        }
        let settled_by_proof = self.is_settled_by_proof(row);
        let by_values =
            !settled_by_proof && self.operands.iter().any(|operand| operand & SHAPED != 0);
        let operator = match row.domain {
            "" => row.operator.to_owned(),
            domain => format!("{domain}.{}", row.operator),
        };
        match hazards.iter_mut().find(|hazard| hazard.operator == operator) {
            Some(known) => {
                known.by_values |= by_values;
                known.settled_by_proof &= settled_by_proof;
            }
            None => {
                hazards.push(Hazard { operator, reason: row.reason, settled_by_proof, by_values });
            }
        }
        Ok(())
    }
}
