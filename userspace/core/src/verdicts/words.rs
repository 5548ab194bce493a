//! What verdicts and sources are called, and why a judgement is what it is, in words for people.

use crate::model::{Judgement, Source, Tolerance, Verdict, Writer};

impl Verdict {
    /// Its name, in the API's JSON spelling without the prefix: "in_force".
    pub const fn name(&self) -> &'static str {
        match self {
            Self::InForce => "in_force",
            Self::Pending { .. } => "pending",
            Self::Diverged => "diverged",
            Self::Rejected { .. } => "rejected",
            Self::Shadowed { .. } => "shadowed",
            Self::OverLimit { .. } => "over_limit",
            Self::Killed { .. } => "killed",
            Self::Reverted { .. } => "reverted",
            Self::Unknown { .. } => "unknown",
        }
    }
}

impl Judgement {
    /// Why, in a sentence without a full stop. `errno_name` is what the system calls an error.
    pub fn reason(&self, errno_name: fn(i32) -> String) -> String {
        let file = self.resource.file();
        let wanted =
            self.desired.map_or_else(|| "unknown".to_owned(), |desired| desired.wanted.ideal().to_string());
        let by = |writer: &Option<Writer>| {
            writer.as_ref().map_or_else(|| "a writer that was not seen".to_owned(), Writer::to_string)
        };
        let mut reason = match &self.verdict {
            Verdict::InForce => match self.tolerance {
                Some(Tolerance::MinimumQuota) => format!("{file} is the least quota that there is, 1000 µs"),
                Some(Tolerance::RoundedToTenMilliseconds) => {
                    format!(
                        "{file} is {}: {wanted}, rounded up by systemd to a hundredth of a CPU",
                        self.in_force
                    )
                }
                Some(Tolerance::OldWeightFormula) => format!("{file} is the weight by the old formula"),
                Some(Tolerance::NewWeightFormula) => format!("{file} is the weight by the new formula"),
                Some(Tolerance::RoundedToPage) => {
                    format!("{file} is {}: {wanted}, rounded down to a page", self.in_force)
                }
                Some(Tolerance::RoomForMore) => {
                    format!("{file} is {}: the known containers need {wanted}", self.in_force)
                }
                Some(Tolerance::Exact) | None => format!("{file} is {}", self.in_force),
            },
            Verdict::Pending { .. } => format!("{file} is still {}, not {wanted}", self.in_force),
            Verdict::Diverged => format!("{file} is {}, not {wanted}", self.in_force),
            Verdict::Rejected { value, errno, writer } => format!(
                "the kernel refused the write of `{value}` to {file} by {} with {}; {file} is {}",
                by(writer),
                errno_name(*errno),
                self.in_force
            ),
            Verdict::Shadowed { role, path, limit } => {
                format!("{file} is {}, but {} {path} allows only {limit}", self.in_force, role.phrase())
            }
            Verdict::OverLimit { usage } => {
                format!("{file} is {}, but {usage} are used: the kernel is reclaiming", self.in_force)
            }
            Verdict::Killed { kills } => format!(
                "{file} is {}, and the OOM killer struck {kills} time{} since the write began",
                self.in_force,
                if *kills == 1 { "" } else { "s" }
            ),
            Verdict::Reverted { writer } => {
                format!("{file} was {wanted}, and was changed to {} by {}", self.in_force, by(writer))
            }
            Verdict::Unknown { missing } => missing.to_string(),
        };
        if !self.disagreeing.is_empty() {
            let sources: Vec<_> = self.disagreeing.iter().map(|source| source.name()).collect();
            reason += &format!("; the sources disagree: {} want otherwise", sources.join(", "));
        }
        reason
    }
}

impl Source {
    /// In words.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::KubeletAllocated => "kubelet (allocated)",
            Self::CriRequest => "CRI request",
            Self::KubeletActuated => "kubelet (actuated)",
            Self::Runtime => "runtime",
        }
    }
}
