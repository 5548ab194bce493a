//! How many raises a container has had and not given back: what is compared with its policy's budget. Pure.
//!
//! A raise without an answer counts once it is found to have been accepted: then, and not a second time.

use crate::give_back::Loan;
use crate::plan::Change;
use crate::policy::Bytes;

/// The raises of one container.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Raises {
    count: u32,
    /// The last one that counts, as long as it is not known to be in force.
    open: Option<Change>,
}

impl Raises {
    /// Of what an earlier guard has lent: a budget is not had again by a restart. `recorded` is what that one has
    /// [recorded](Self::recorded); without it, as by guards that did not record it, the count is by the policy's step of now.
    pub fn inherited(loan: &Loan, recorded: Option<u32>, step: Bytes) -> Self {
        Self { count: recorded.unwrap_or_else(|| loan.raises(step)), open: raise_to_come(loan) }
    }

    /// What is put down with a loan: the number of raises, that counted which may still come.
    pub fn recorded(self, loan: &Loan) -> u32 {
        let is_to_come = raise_to_come(loan).is_some_and(|raise| self.open != Some(raise));
        self.count.saturating_add(is_to_come.into())
    }

    /// The number of raises that count.
    pub fn count(self) -> u32 {
        self.count
    }

    /// A change is requested. One that differs from the last is another one.
    pub fn requested(&mut self, change: Change) {
        self.open = self.open.filter(|open| *open == change);
    }

    /// It was accepted, by an answer.
    pub fn accepted(&mut self, change: Change) {
        if change.to > change.from {
            self.count = self.count.saturating_add(1);
            self.open = Some(change);
        }
    }

    /// It was accepted, as is found out later. What is found may be what an earlier answer was about.
    pub fn found(&mut self, change: Change) {
        if self.open != Some(change) {
            self.accepted(change);
        }
    }

    /// It was accepted, or counts because it might have been, and will not come into force.
    pub fn taken_back(&mut self, change: Change) {
        if self.open.take_if(|open| *open == change).is_some() {
            self.count = self.count.saturating_sub(1);
        }
    }

    /// A limit was lowered, by so many raises; `is_all`: nothing is lent any more.
    pub fn returned(&mut self, raises: u64, is_all: bool) {
        let raises = u32::try_from(raises).unwrap_or(u32::MAX);
        self.count = if is_all { 0 } else { self.count.saturating_sub(raises) };
    }

    /// It is in force.
    pub fn in_force(&mut self) {
        self.open = None;
    }
}

/// The last change, if it is a raise and may still come.
fn raise_to_come(loan: &Loan) -> Option<Change> {
    loan.unanswered().filter(|change| change.to > change.from)
}

#[cfg(test)]
mod tests {
    use super::*;

    const UP: Change = Change { from: Bytes(64), to: Bytes(128) };
    const DOWN: Change = Change { from: Bytes(128), to: Bytes(64) };

    #[test]
    fn a_raise_counts_by_its_answer_or_as_soon_as_it_is_found() {
        let mut raises = Raises::default();
        raises.requested(UP);
        assert_eq!(raises.count(), 0);
        raises.accepted(UP);
        raises.in_force();
        assert_eq!(raises.count(), 1);
        raises.requested(DOWN);
        raises.accepted(DOWN);
        raises.found(DOWN);
        assert_eq!(raises.count(), 1, "what is given back is no raise");
        raises.requested(UP);
        raises.found(UP);
        assert_eq!(raises.count(), 2, "the same change again, without an answer");
    }

    #[test]
    fn what_an_earlier_guard_has_lent_counts() {
        let loan = Loan::requested(None, UP);
        let inherited = |loan: &Loan| Raises::inherited(loan, None, Bytes(64));
        let mut raises = inherited(&loan);
        raises.found(UP);
        assert_eq!(raises.count(), 1, "its answer was to come");
        raises.taken_back(UP);
        assert_eq!(raises.count(), 0, "it never came");
        let loan = loan.confirmed(UP.to).unwrap();
        let again = Loan::requested(Some(loan), Change { from: Bytes(128), to: Bytes(200) });
        let of = |loan: &Loan| inherited(loan).count();
        assert_eq!((of(&loan), of(&again)), (1, 3), "a part of a step is one");
        let returning = Loan::requested(Some(loan), DOWN);
        let mut raises = inherited(&returning);
        assert_eq!(raises.count(), 1, "it may not come");
        raises.taken_back(DOWN);
        assert_eq!(raises.count(), 1, "it did not come");
    }

    #[test]
    fn what_is_recorded_counts_whatever_the_step_is_by_then() {
        let inherited =
            |raises: Raises, loan: &Loan| Raises::inherited(loan, Some(raises.recorded(loan)), Bytes(1));
        let mut raises = Raises::default();
        raises.requested(UP);
        let loan = Loan::requested(None, UP);
        let mut early = inherited(raises, &loan);
        assert_eq!((raises.count(), early.count()), (0, 1), "before its answer");
        early.taken_back(UP);
        assert_eq!(early.count(), 0);
        raises.accepted(UP);
        assert_eq!(inherited(raises, &loan).count(), 1, "once");
        raises.in_force();
        let loan = loan.confirmed(UP.to).unwrap();
        assert_eq!(inherited(raises, &loan).count(), 1);
        raises.requested(DOWN);
        assert_eq!(inherited(raises, &Loan::requested(Some(loan), DOWN)).count(), 1);
    }

    #[test]
    fn what_is_given_back_can_be_had_again() {
        let mut raises = Raises { count: 5, open: None };
        raises.returned(2, false);
        assert_eq!(raises.count(), 3);
        raises.returned(u64::MAX, false);
        assert_eq!(raises.count(), 0);
        let mut raises = Raises { count: 5, open: None };
        raises.returned(1, true);
        assert_eq!(raises.count(), 0, "one of them never came");
    }

    #[test]
    fn what_never_came_into_force_and_was_taken_back_does_not_count() {
        let mut raises = Raises::default();
        raises.requested(UP);
        raises.accepted(UP);
        raises.taken_back(DOWN);
        assert_eq!(raises.count(), 1, "another one");
        raises.taken_back(UP);
        raises.taken_back(UP);
        assert_eq!(raises.count(), 0);
    }

    #[test]
    fn what_is_found_is_not_counted_again() {
        let mut raises = Raises::default();
        raises.requested(UP);
        raises.accepted(UP);
        // Deferred by the kubelet; the next attempt is not answered, and the spec has what the first one set.
        raises.requested(UP);
        raises.found(UP);
        assert_eq!(raises.count(), 1);
        raises.requested(UP);
        raises.accepted(UP);
        assert_eq!(raises.count(), 2, "each answer is a raise");
    }
}
