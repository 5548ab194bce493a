//! What found the end of a container, by the log of a kubelet to which events are hints (1.37, `-v=5`).
//!
//! One thread of the kubelet looks, at all pods or at one of them, and logs both what it looks at and what it finds. So the last look
//! before the find is the one that found it.

/// What had the kubelet look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FoundBy {
    /// The event: the runtime agreed when it came.
    Hint,
    /// The look of each second, before the event.
    Relist,
    /// The look of each second, after the event: the runtime did not agree yet when that came.
    LateRelist,
}

/// What found that container's end, in what the kubelet has logged since it was killed; none if it has not.
pub fn found_by(log: &str, id: &str) -> Option<FoundBy> {
    let is_find = |line: &&str| line.contains("\"Generic (PLEG): container finished\"") && line.contains(id);
    let find = log.lines().find(is_find)?;
    let pod = find.split_once("podID=\"")?.1.split('"').next()?;
    let (mut found, mut hinted, mut looked, mut is_late) = (None, false, false, false);
    for line in log.lines().take_while(|line| !is_find(line)) {
        if line.contains("\"GenericPLEG: Relisting\"") {
            is_late |= hinted && looked;
            found = Some(if is_late { FoundBy::LateRelist } else { FoundBy::Relist });
        } else if line.contains("\"GenericPLEG: Relisting Pod\"") && line.contains(pod) {
            looked = true;
            found = Some(FoundBy::Hint);
        } else if line.contains("\"Evented PLEG: requested pod relist") && line.contains(id) {
            hinted = true;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const RELIST: &str = r#"I1130 00:00:01.000001 7 generic.go:294] "GenericPLEG: Relisting""#;
    const LOOK: &str = r#"I1130 00:00:01.000001 7 generic.go:418] "GenericPLEG: Relisting Pod" podUID="u1""#;
    const OTHER_LOOK: &str =
        r#"I1130 00:00:01.000001 7 generic.go:418] "GenericPLEG: Relisting Pod" podUID="u2""#;
    const HINT: &str = r#"I1130 00:00:01.000001 7 evented.go:132] "Evented PLEG: requested pod relist after container termination" podUID="u1" containerID="c1" eventType="CONTAINER_STOPPED_EVENT""#;
    const FIND: &str = r#"I1130 00:00:01.000001 7 generic.go:413] "Generic (PLEG): container finished" podID="u1" containerID="c1" exitCode=137"#;

    #[test]
    fn the_last_look_before_the_find_found_it() {
        for (lines, expected) in [
            (&[RELIST, HINT, LOOK, FIND][..], Some(FoundBy::Hint)),
            // The line about the request comes after the request.
            (&[LOOK, HINT, FIND, RELIST], Some(FoundBy::Hint)),
            (&[RELIST, FIND, HINT, LOOK], Some(FoundBy::Relist)),
            // The request and the second came together.
            (&[HINT, RELIST, FIND], Some(FoundBy::Relist)),
            (&[HINT, OTHER_LOOK, RELIST, FIND], Some(FoundBy::Relist)),
            (&[HINT, LOOK, RELIST, FIND], Some(FoundBy::LateRelist)),
            (&[LOOK, HINT, RELIST, RELIST, FIND], Some(FoundBy::LateRelist)),
            (&[RELIST, HINT, LOOK], None),
        ] {
            assert_eq!(found_by(&lines.join("\n"), "c1"), expected, "{lines:#?}");
        }
    }
}
