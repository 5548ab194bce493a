//! Limits: what the knobs of a cgroup say.

mod value;

pub use value::{Bound, CpuMax, Format, FormatError, Reading, Value};
