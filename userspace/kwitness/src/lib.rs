//! The user side of kwitness.
