//! What the domain knows, in the API's shape. Never the other way.

pub mod convert;
mod limits;
pub mod verdicts;
