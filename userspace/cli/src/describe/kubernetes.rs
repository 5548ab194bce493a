//! What the Kubernetes API says of limits, beside what the kernel has; and the daemon's watch of it. Amounts are as the API has them.

use anstyle::Style;
use kwitness_api::proto;
use kwitness_api::proto::KubernetesComparison;
use kwitness_core::units;

use super::limits::reading;
use super::{BAD, GOOD, NOTICE, Names, word};
use crate::table::{Cell, Fit, Table};
use crate::text::UNKNOWN;
use crate::time::Times;

/// Narrower terminals have room for the amounts that the files follow from; `-o wide` has all.
const ALL_WIDTH: usize = 100;

/// A table of what the API says of each limit; none: it says nothing of any.
pub fn table<'a>(
    limits: impl Iterator<Item = (&'a proto::Verdict, Names)>,
    width: Option<usize>,
    is_one_namespace: bool,
) -> Option<String> {
    let has_all = width.is_none_or(|width| width >= ALL_WIDTH);
    let row = |(verdict, names)| row(verdict, names, has_all, is_one_namespace);
    let rows: Vec<_> = limits.filter_map(row).collect();
    let table = Table::new(width).column("POD", 0, Fit::Middle(8)).column("CONTAINER", 0, Fit::Middle(7));
    let table = table.column("LIMIT", 0, Fit::Whole);
    let columns = ["SPEC", "ALLOCATED", "STATUS", "CGROUP"];
    let columns = columns.into_iter().filter(|heading| has_all || *heading != "ALLOCATED");
    let table = columns.fold(table, |table, heading| table.column(heading, 0, Fit::End(heading.len())));
    (!rows.is_empty()).then(|| table.column("API", 0, Fit::Whole).render(&rows))
}

fn row(verdict: &proto::Verdict, names: Names, has_all: bool, is_one_namespace: bool) -> Option<Vec<Cell>> {
    let of = verdict.kubernetes.as_ref()?;
    let amounts = |of| Cell::from(amounts(of, &verdict.file, has_all));
    let pod = if is_one_namespace { names.pod.clone() } else { names.qualified() };
    let mut row: Vec<Cell> = vec![pod.into(), names.container.into(), verdict.file.as_str().into()];
    row.push(amounts(of.spec.as_ref()));
    // The API has no limits there.
    if has_all {
        row.push(amounts(of.allocated.as_ref()));
    }
    row.extend([amounts(of.status.as_ref()), reading(&verdict.file, verdict.in_force.as_ref()).into()]);
    let comparison = of.comparison();
    row.push(Cell::styled(word(comparison.as_str_name(), PREFIX).replace('_', " "), style(comparison)));
    Some(row)
}

const PREFIX: &str = "KUBERNETES_COMPARISON_";

fn style(comparison: KubernetesComparison) -> Style {
    match comparison {
        KubernetesComparison::Agrees => GOOD,
        KubernetesComparison::Disagrees => BAD,
        _ => NOTICE,
    }
}

/// The limit, then the request in parentheses; of both only the one that the file follows from, unless all is to be shown.
fn amounts(of: Option<&proto::KubernetesAmounts>, file: &str, has_all: bool) -> String {
    let Some(proto::KubernetesAmounts { limit, request }) = of else { return UNKNOWN.to_owned() };
    let is_of_request = file == "cpu.weight";
    let limit = limit.iter().filter(|_| has_all || !is_of_request).cloned();
    let request = request.iter().filter(|_| has_all || is_of_request).map(|request| format!("({request})"));
    let both: Vec<_> = limit.chain(request).collect();
    if both.is_empty() { UNKNOWN.to_owned() } else { both.join(" ") }
}

/// Where the API and the kernel disagree, since when by either side; and the conditions of a resize.
pub fn lines(verdict: &proto::Verdict, times: Times) -> Vec<String> {
    let Some(of) = &verdict.kubernetes else { return Vec::new() };
    let mut lines: Vec<_> =
        of.disagreements.iter().map(|of| disagreement(&verdict.file, of, times)).collect();
    lines.extend(of.conditions.iter().map(|of| {
        let proto::ResizeCondition { r#type: kind, reason, message, since, .. } = of;
        let reason = reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
        let message = message.as_ref().map(|message| format!(": {message}")).unwrap_or_default();
        format!("{kind}{reason} since {}{message}", times.show_alone(*since))
    }));
    if !of.outage.is_empty() {
        let (since, received) = (times.show_alone(of.outage_since), times.show_alone(of.received));
        let last = if of.received.is_some() { format!("; last received {received}") } else { String::new() };
        lines.push(format!("not watched since {since}{last}"));
    }
    lines
}

fn disagreement(file: &str, of: &proto::KubernetesDisagreement, times: Times) -> String {
    let earlier = if of.or_earlier { " or earlier" } else { "" };
    let since = format!("{}{earlier}", times.show_alone(of.since));
    let says = match of.reason() {
        proto::KubernetesDisagreementReason::ResizeCompletedNotInForce => {
            format!("the resize to {} is reported as completed since {since}", of.says)
        }
        proto::KubernetesDisagreementReason::StatusDiffers
        | proto::KubernetesDisagreementReason::Unspecified => {
            format!("status says {} since {since}", of.says)
        }
    };
    let kernel = units::value(file, &of.kernel);
    let at = match of.written {
        Some(written) => format!("since {}", times.show_alone(Some(written))),
        None => format!("at {}", times.show_alone(of.read)),
    };
    format!("{says}, the kernel has {kernel} {at}")
}

/// The daemon's watch, in a line.
pub fn status(of: Option<&proto::KubernetesStatus>, times: Times) -> String {
    let Some(of) = of else { return "not used (kubernetes.enabled is false)".to_owned() };
    let since = times.show_alone(of.since);
    let proto::KubernetesStatus { server, node_name, error, pods, .. } = of;
    let watch = if of.connected {
        let last = times.show_alone(of.last_event);
        format!("watching {pods} pods of {node_name} at {server} since {since}, last event {last}")
    } else if error.is_empty() {
        format!("connecting since {since}")
    } else {
        format!("not watched since {since}: {error}")
    };
    let lost = match of.not_stored {
        0 => String::new(),
        count => format!("; {count} pods not stored"),
    };
    format!("{watch}{lost}; {}", cost(of))
}

/// What the watch costs.
pub fn cost(of: &proto::KubernetesStatus) -> String {
    let proto::KubernetesStatus { lists, watches, reads, bytes, bytes_received, .. } = of;
    format!(
        "{} requests, {} KiB received, {} KiB held",
        lists + watches + reads,
        bytes_received.div_ceil(1024),
        bytes.div_ceil(1024)
    )
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use kwitness_api::Timestamp;

    /// A limit that a process has overwritten behind the kubelet's back.
    pub(crate) fn disagreeing() -> proto::Verdict {
        let at = |seconds: i64| Some(Timestamp { seconds: 1_767_358_800 + seconds, nanos: 0 });
        let amounts = |limit: Option<&str>, request: &str| {
            Some(proto::KubernetesAmounts {
                limit: limit.map(str::to_owned),
                request: Some(request.to_owned()),
            })
        };
        let of = |reason: proto::KubernetesDisagreementReason, or_earlier, written| {
            proto::KubernetesDisagreement {
                reason: reason.into(),
                says: "256Mi".into(),
                since: at(1),
                or_earlier,
                kernel: "134217728".into(),
                written,
                read: at(30),
            }
        };
        proto::Verdict {
            file: "memory.max".into(),
            verdict: proto::VerdictKind::Reverted.into(),
            in_force: Some(proto::Reading {
                reading: Some(proto::reading::Reading::Value("134217728".into())),
            }),
            kubernetes: Some(proto::KubernetesLimit {
                comparison: KubernetesComparison::Disagrees.into(),
                disagreements: vec![
                    of(proto::KubernetesDisagreementReason::StatusDiffers, false, at(5)),
                    of(proto::KubernetesDisagreementReason::ResizeCompletedNotInForce, true, None),
                ],
                spec: amounts(Some("256Mi"), "64Mi"),
                allocated: amounts(None, "64Mi"),
                status: amounts(Some("256Mi"), "64Mi"),
                conditions: vec![proto::ResizeCondition {
                    r#type: "PodResizePending".into(),
                    reason: Some("Deferred".into()),
                    message: Some("Node didn't have enough resource".into()),
                    since: at(2),
                    observed_generation: None,
                }],
                ..Default::default()
            }),
            ..Default::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::disagreeing;
    use super::*;
    use crate::time::TimeFormat;
    use kwitness_api::Timestamp;

    fn times() -> Times {
        Times::at(TimeFormat::Clock, "2026-01-02T13:30:00Z").to_seconds()
    }

    fn names() -> Names {
        Names { namespace: "prod".into(), pod: "web-0".into(), container: "app".into() }
    }

    #[test]
    fn what_the_api_says_stands_beside_what_the_kernel_has() {
        let away = proto::Verdict {
            file: "cpu.max".into(),
            kubernetes: Some(proto::KubernetesLimit {
                comparison: KubernetesComparison::Unreachable.into(),
                outage: "away".into(),
                outage_since: Some(Timestamp { seconds: 1_767_358_810, nanos: 0 }),
                received: Some(Timestamp { seconds: 1_767_358_800, nanos: 0 }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let (limit, none) = (disagreeing(), proto::Verdict::default());
        let all = [&limit, &away, &none];
        let shown = |width, is_one_namespace| {
            let limits = all.into_iter().map(|verdict| (verdict, names()));
            let table = table(limits, width, is_one_namespace).unwrap();
            anstream::adapter::strip_str(&table).to_string()
        };
        let lines: Vec<_> = all.iter().flat_map(|verdict| lines(verdict, times())).collect();
        let with_lines = format!("{}\n{}\n", shown(Some(80), false), lines.join("\n"));
        assert_eq!(
            with_lines,
            "\
POD         CONTAINER  LIMIT       SPEC   STATUS  CGROUP  API
prod/web-0  app        memory.max  256Mi  256Mi   128Mi   disagrees
prod/web-0  app        cpu.max     -      -       -       unreachable

status says 256Mi since 13:00:01 UTC, the kernel has 128Mi since 13:00:05 UTC
the resize to 256Mi is reported as completed since 13:00:01 UTC or earlier, the kernel has 128Mi at 13:00:30 UTC
PodResizePending (Deferred) since 13:00:02 UTC: Node didn't have enough resource
not watched since 13:00:10 UTC; last received 13:00:00 UTC
"
        );
        assert_eq!(
            shown(None, true),
            "\
POD    CONTAINER  LIMIT       SPEC          ALLOCATED  STATUS        CGROUP  API
web-0  app        memory.max  256Mi (64Mi)  (64Mi)     256Mi (64Mi)  128Mi   disagrees
web-0  app        cpu.max     -             -          -             -       unreachable
"
        );
        assert_eq!(
            table([(&none, names())].into_iter(), None, false),
            None,
            "without the API, nothing is added"
        );
    }

    #[test]
    fn where_there_is_no_room_only_the_amount_is_shown_that_the_file_follows_from() {
        let of = proto::KubernetesAmounts { limit: Some("1".into()), request: Some("500m".into()) };
        let shown = |file, has_all| amounts(Some(&of), file, has_all);
        assert_eq!((&*shown("cpu.max", false), &*shown("cpu.weight", false)), ("1", "(500m)"));
        assert_eq!((&*shown("cpu.max", true), &*shown("cpu.weight", true)), ("1 (500m)", "1 (500m)"));
        assert_eq!(amounts(Some(&proto::KubernetesAmounts::default()), "cpu.max", false), UNKNOWN);
    }

    #[test]
    fn the_watch_in_a_line() {
        let at = Some(Timestamp { seconds: 1_767_358_800, nanos: 0 });
        let watching = proto::KubernetesStatus {
            server: "https://10.96.0.1/".into(),
            node_name: "node-1".into(),
            connected: true,
            since: at,
            last_event: at,
            pods: 7,
            bytes: 9000,
            lists: 1,
            watches: 2,
            bytes_received: 70_000,
            ..Default::default()
        };
        assert_eq!(
            status(Some(&watching), times()),
            "watching 7 pods of node-1 at https://10.96.0.1/ since 13:00:00 UTC, last event 13:00:00 UTC; 3 requests, \
             69 KiB received, 9 KiB held"
        );
        let failed = proto::KubernetesStatus {
            since: at,
            failure: proto::KubernetesFailure::Forbidden.into(),
            error: "the credentials do not allow it (403): no".into(),
            not_stored: 2,
            ..Default::default()
        };
        assert_eq!(
            status(Some(&failed), times()),
            "not watched since 13:00:00 UTC: the credentials do not allow it (403): no; 2 pods not stored; 0 requests, \
             0 KiB received, 0 KiB held"
        );
        assert_eq!(status(None, times()), "not used (kubernetes.enabled is false)");
    }
}
