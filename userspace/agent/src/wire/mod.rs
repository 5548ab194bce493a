//! What the domain knows, in the API's shape. Never the other way.

pub mod containers;
pub mod convert;
mod guard;
mod kubernetes;
mod limits;
mod probe;
mod problems;
mod subject;
pub mod verdicts;

pub use probe::{capability, program};
pub use problems::{problem, unserved};
