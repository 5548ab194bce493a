//! The kinds of calls whose number is limited, and the limits. How they are kept is the API's.

/// A kind of call that is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// `kwitness.v1alpha1.Kwitness/Watch`.
    Watch,
    /// `kwitness.v1alpha1.Kwitness/Verify`.
    Verify,
    /// `kwitness.v1alpha1.Kwitness/List`.
    List,
    /// `kwitness.v1alpha1.Kwitness/Status`, which no stream may keep from being answered.
    Status,
    /// `kwitness.v1alpha1.Kwitness/WatchUsage`.
    WatchUsage,
    /// `kwitness.v1alpha1.Kwitness/ReportCriRequests` and `ReportGuardEvents`.
    Report,
    /// `grpc.health.v1.Health/Check`, which no other call may keep from being answered.
    HealthCheck,
    /// `grpc.health.v1.Health/Watch`.
    HealthWatch,
    /// `runtime.v1.RuntimeService/GetContainerEvents`.
    ContainerEvents,
    /// Every other: reflection is a stream, and whatever is called may be sent slowly.
    Other,
}

impl Call {
    /// All of them, in the order of their values.
    pub const ALL: [Self; 10] = [
        Self::Watch,
        Self::Verify,
        Self::List,
        Self::Status,
        Self::WatchUsage,
        Self::Report,
        Self::HealthCheck,
        Self::HealthWatch,
        Self::ContainerEvents,
        Self::Other,
    ];
}

/// The most active calls of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MaxCalls([u32; Call::ALL.len()]);

impl MaxCalls {
    /// The same for all kinds.
    pub fn all(max: u32) -> Self {
        Self([max; Call::ALL.len()])
    }

    /// Sets the maximum of one call.
    pub fn set(&mut self, call: Call, max: u32) {
        self.0[call as usize] = max;
    }

    /// The maximum of one call.
    pub fn get(&self, call: Call) -> u32 {
        self.0[call as usize]
    }
}
