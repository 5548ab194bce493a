//! Spans of a track, side by side where they overlap.

use super::{Span, Style};

/// Puts each span into the first lane that is free by then; lanes of a container's states come before those of processes.
pub(super) fn lanes(spans: Vec<Span>) -> Vec<Vec<Span>> {
    let is_state = |span: &Span| !matches!(span.style, Style::Main | Style::Exec);
    let (mut states, mut processes): (Vec<_>, Vec<_>) = spans.into_iter().partition(is_state);
    let mut lanes = Vec::new();
    for spans in [&mut states, &mut processes] {
        spans.sort_by(|left, right| {
            let key = |span: &Span| (span.from, std::cmp::Reverse(span.to), span.style);
            key(left).cmp(&key(right)).then_with(|| left.name.cmp(&right.name))
        });
        let mut own: Vec<Vec<Span>> = Vec::new();
        for span in spans.drain(..) {
            let free = own.iter_mut().find(|lane| lane.last().is_none_or(|last| last.to <= span.from));
            match free {
                Some(lane) => lane.push(span),
                None => own.push(vec![span]),
            }
        }
        lanes.append(&mut own);
    }
    lanes
}
