//! Which labels metrics have. What the series are is the metrics'.

/// Which labels the series of containers have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Labels {
    /// The pod's namespace.
    pub namespace: bool,
    /// The pod's name.
    pub pod: bool,
    /// The container's name.
    pub container: bool,
}
