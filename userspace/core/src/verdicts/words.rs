//! What verdicts and sources are called, and why a judgement is what it is, in words for people. Amounts are as in a pod's spec.

use crate::model::{Judgement, Reading, Source, Tolerance, Verdict, Writer};
use crate::units;

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
        let file = self.resource.file().to_string();
        let amount = |raw: String| units::value(&file, &raw);
        let in_force = match &self.in_force {
            Reading::Is(value) => amount(value.to_string()),
            other => other.to_string(),
        };
        let wanted = self
            .desired
            .map_or_else(|| "unknown".to_owned(), |desired| amount(desired.wanted.ideal().to_string()));
        let by = |writer: &Option<Writer>| {
            writer.as_ref().map_or_else(|| "an unseen writer".to_owned(), Writer::to_string)
        };
        let mut reason = match &self.verdict {
            Verdict::InForce => match self.tolerance {
                Some(Tolerance::MinimumQuota) => format!("{file} is the kernel's minimum quota, 1000 µs"),
                Some(Tolerance::RoundedToTenMilliseconds) => {
                    format!("{file} is {in_force}: {wanted}, rounded up by systemd to a hundredth of a CPU")
                }
                Some(Tolerance::OldWeightFormula) => format!("{file} is the weight by the old formula"),
                Some(Tolerance::NewWeightFormula) => format!("{file} is the weight by the new formula"),
                Some(Tolerance::RoundedToPage) => {
                    format!("{file} is {in_force}: {wanted}, rounded down to a page")
                }
                Some(Tolerance::RoomForMore) => {
                    format!("{file} is {in_force}: the known containers need {wanted}")
                }
                Some(Tolerance::Exact) | None => format!("{file} is {in_force}"),
            },
            Verdict::Pending { .. } => format!("{file} is still {in_force}, not {wanted}"),
            Verdict::Diverged => format!("{file} is {in_force}, not {wanted}"),
            Verdict::Rejected { value, errno, writer } => format!(
                "the kernel rejected the write of `{value}` to {file} by {} with {}; {file} is {in_force}",
                by(writer),
                errno_name(*errno),
            ),
            Verdict::Shadowed { role, path, limit } => {
                let limit = amount(limit.to_string());
                format!("{file} is {in_force}, but {} {path} allows only {limit}", role.phrase())
            }
            Verdict::OverLimit { usage } => {
                let usage = units::amount(*usage);
                format!("{file} is {in_force}, but {usage} are used: the kernel is reclaiming")
            }
            Verdict::Killed { kills } => format!(
                "{file} is {in_force}, and the OOM killer struck {kills} time{} since the write began",
                if *kills == 1 { "" } else { "s" }
            ),
            Verdict::Reverted { writer } => {
                format!("{file} was {wanted}, and was changed to {in_force} by {}", by(writer))
            }
            Verdict::Unknown { missing } => missing.to_string(),
        };
        if !self.disagreeing.is_empty() {
            let sources: Vec<_> = self.disagreeing.iter().map(|source| source.name()).collect();
            let have = if sources.len() == 1 { "has" } else { "have" };
            reason += &format!("; the sources disagree: {} {have} another limit", sources.join(", "));
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
            Self::Guard => "guard",
        }
    }
}
