//! What follows what in one hold of a container: the state machine drawn in the crate's description. Pure: it gets what
//! happened, and returns what to do next.
//!
//! All processes of a container that are held at a time share one episode: the first begins it, the others join.

use crate::plan::{self, Change, Facts, Refusal};
use crate::policy::Rule;

/// A hold that has not ended. A process that continues has no episode, so nothing can be decided for it any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Episode {
    raise: Change,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Raising,
    Verifying,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// The container runtime or the Kubernetes API has answered.
    Raised(Result<(), Refusal>),
    /// The daemon has answered, or the cgroups' files have.
    Verified(Result<Proof, Refusal>),
    /// The container or its pod is gone, or going.
    Gone,
    /// The longest hold has ended.
    Overdue,
    /// No watchdog looks on.
    Unwatched,
}

/// What shows that a limit is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// The daemon's verdict.
    Verdict,
    /// The files of the cgroups, as the guard has read them: the daemon could not decide.
    Files,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Raise the limit.
    Raise(Episode),
    /// Have the daemon verify it.
    Verify(Episode),
    /// Nothing: the answer belongs to a stage that is over.
    Wait(Episode),
    /// Continue every held process of the container.
    Continue(Outcome),
}

/// How a hold ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The limit is in force.
    Raised(Change, Proof),
    /// It is not; hold nothing of the container for its cool-down.
    Refused(Refusal),
}

impl Episode {
    /// A process is held, and its container has no episode.
    pub fn begin(rule: &Rule, facts: &Facts) -> Next {
        match plan::raise(rule, facts) {
            Ok(raise) => Next::Raise(Self { raise, stage: Stage::Raising }),
            Err(refusal) => Next::Continue(Outcome::Refused(refusal)),
        }
    }

    /// The raise that it is about.
    pub fn raise(&self) -> Change {
        self.raise
    }

    /// What follows.
    pub fn next(self, input: Input) -> Next {
        let refused = |refusal| Next::Continue(Outcome::Refused(refusal));
        match (self.stage, input) {
            (Stage::Raising, Input::Raised(Ok(()))) => Next::Verify(Self { stage: Stage::Verifying, ..self }),
            (Stage::Verifying, Input::Verified(Ok(proof))) => {
                Next::Continue(Outcome::Raised(self.raise, proof))
            }
            (Stage::Raising, Input::Raised(Err(refusal)))
            | (Stage::Verifying, Input::Verified(Err(refusal))) => refused(refusal),
            (_, Input::Gone) => refused(Refusal::Gone),
            (_, Input::Unwatched) => refused(Refusal::WatchdogLost),
            (Stage::Raising, Input::Overdue) => refused(Refusal::TooLate("raising the limit")),
            (Stage::Verifying, Input::Overdue) => refused(Refusal::TooLate("verifying it")),
            (Stage::Raising, Input::Verified(_)) | (Stage::Verifying, Input::Raised(_)) => Next::Wait(self),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::{facts, rule};

    fn raising() -> Episode {
        match Episode::begin(&rule(), &facts()) {
            Next::Raise(episode) => episode,
            other => panic!("{other:?}"),
        }
    }

    fn verifying() -> Episode {
        match raising().next(Input::Raised(Ok(()))) {
            Next::Verify(episode) => episode,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_raise_in_force_ends_the_hold() {
        let raise = raising().raise();
        for proof in [Proof::Verdict, Proof::Files] {
            let next = verifying().next(Input::Verified(Ok(proof)));
            assert_eq!(next, Next::Continue(Outcome::Raised(raise, proof)));
        }
    }

    #[test]
    fn what_the_policy_refuses_is_never_raised() {
        let full = Facts { raises: rule().budget, ..facts() };
        let next = Episode::begin(&rule(), &full);
        assert_eq!(next, Next::Continue(Outcome::Refused(Refusal::BudgetExhausted(2))));
    }

    #[test]
    fn every_refusal_ends_the_hold_at_once() {
        let why = || "why".to_owned();
        for refusal in [Refusal::Gone, Refusal::Unanswered, Refusal::Runtime(why())] {
            let next = raising().next(Input::Raised(Err(refusal.clone())));
            assert_eq!(next, Next::Continue(Outcome::Refused(refusal)));
        }
        for refusal in [Refusal::NotInForce(why()), Refusal::Unverified(why())] {
            let next = verifying().next(Input::Verified(Err(refusal.clone())));
            assert_eq!(next, Next::Continue(Outcome::Refused(refusal)));
        }
    }

    #[test]
    fn in_every_stage_the_end_of_the_container_the_watchdog_and_the_longest_hold_end_it() {
        for (episode, late) in [(raising(), "raising the limit"), (verifying(), "verifying it")] {
            let gone = episode.clone().next(Input::Gone);
            assert_eq!(gone, Next::Continue(Outcome::Refused(Refusal::Gone)));
            let unwatched = episode.clone().next(Input::Unwatched);
            assert_eq!(unwatched, Next::Continue(Outcome::Refused(Refusal::WatchdogLost)));
            let overdue = episode.next(Input::Overdue);
            assert_eq!(overdue, Next::Continue(Outcome::Refused(Refusal::TooLate(late))));
        }
    }

    #[test]
    fn an_answer_of_another_stage_changes_nothing() {
        let refusal = Refusal::NotInForce("of an earlier hold".to_owned());
        assert_eq!(raising().next(Input::Verified(Err(refusal))), Next::Wait(raising()));
        assert_eq!(raising().next(Input::Verified(Ok(Proof::Verdict))), Next::Wait(raising()));
        assert_eq!(verifying().next(Input::Raised(Ok(()))), Next::Wait(verifying()));
    }
}
