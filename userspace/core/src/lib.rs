//! The pure domain of kwitness.
