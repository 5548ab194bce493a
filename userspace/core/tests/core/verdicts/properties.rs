//! What holds of all verdicts, whatever the levels and the history.

use proptest::prelude::*;

use super::*;

/// A level's limit: unlimited, a number, or not there.
fn reading() -> impl Strategy<Value = Reading> {
    prop_oneof![
        4 => (0..8_u64).prop_map(|pages| bytes(pages * PAGE)),
        2 => Just(Reading::Is(Value::Bound(Bound::Unlimited))),
        1 => Just(Reading::Absent),
        1 => Just(Reading::Gone),
        1 => Just(Reading::Unknown("EIO".into())),
    ]
}

fn attempts() -> impl Strategy<Value = Vec<Attempt>> {
    let one = (0..8_u64, prop::option::of(Just(EINVAL)))
        .prop_map(|(pages, errno)| attempt(&(pages * PAGE).to_string(), errno, "w"));
    prop::collection::vec(one, 0..4)
}

proptest! {
    /// In force is said only when every level is known, the own one says what is wanted, and none allows less.
    #[test]
    fn in_force_is_never_said_lightly(
        wanted in prop::option::of(0..8_u64),
        readings in prop::collection::vec(reading(), 1..5),
        own in 0..5_usize,
        attempts in attempts(),
        usage in prop::option::of(0..8_u64),
        kills in prop::option::of(0..2_u64),
        deadline in prop::option::of(0..200_u64),
        now in 0..200_u64,
    ) {
        let levels: Vec<Level> = readings
            .iter()
            .enumerate()
            .map(|(index, reading)| Level {
                path: Arc::from(format!("/{index}")),
                role: LevelRole::Other,
                reading: reading.clone(),
            })
            .collect();
        let desired: Vec<DesiredLimit> =
            wanted.into_iter().map(|pages| desired(Source::Client, memory(pages * PAGE))).collect();
        let case = Case {
            resource: Resource::Memory,
            desired: &desired,
            may_be_less: false,
            unobserved: &[],
            levels: &levels,
            own,
            attempts: &attempts,
            other_writes: &[],
            usage: usage.map(|pages| pages * PAGE),
            kills,
            deadline: deadline.map(KernelTime),
            now: KernelTime(now),
            page: PAGE,
        };
        let judgement = judge(&case, &VerdictHistory::default());
        prop_assert!(!judgement.reason(number).is_empty());
        let number = |reading: &Reading| match reading {
            Reading::Is(Value::Bound(Bound::At(bytes))) => Some(*bytes),
            _ => None,
        };
        let known = readings.iter().all(|reading| matches!(reading, Reading::Is(_) | Reading::Absent));
        let least = readings.iter().filter_map(number).min();
        let wanted = wanted.map(|pages| pages * PAGE);
        let own_says = readings.get(own).and_then(number);
        let holds = wanted.is_some()
            && own_says == wanted
            && known
            && least == wanted
            && kills.unwrap_or(0) == 0
            && usage.is_none_or(|pages| pages * PAGE <= wanted.unwrap_or(0));
        prop_assert_eq!(judgement.verdict == Verdict::InForce, holds, "{:?}", judgement);
        if let Verdict::Pending { until } = judgement.verdict {
            prop_assert!(KernelTime(now) < until);
        }
        if known && let Some((value, _)) = &judgement.effective {
            prop_assert_eq!(value, &Value::Bound(least.map_or(Bound::Unlimited, Bound::At)));
        }
    }

    /// Whatever was judged before: a change of what is in force while the same is wanted is never called "diverged".
    #[test]
    fn what_was_in_force_is_never_merely_diverged(steps in prop::collection::vec(0..3_u64, 1..20)) {
        let mut fixture = memory_fixture();
        let mut was = false;
        for step in steps {
            fixture.levels[0].reading = bytes((62 + step) * MIB);
            let (judgement, _) = fixture.note();
            was |= judgement.verdict == Verdict::InForce;
            prop_assert_eq!(judgement.verdict == Verdict::InForce, step == 2);
            prop_assert_eq!(matches!(judgement.verdict, Verdict::Reverted { .. }), was && step != 2);
        }
    }
}
