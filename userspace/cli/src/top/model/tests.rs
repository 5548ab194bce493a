//! Order, filter, selection and keys, without a screen.

use super::*;
use crate::top::testing::{container, sample, value};

fn model(sort: Sort) -> Model {
    let mut model = Model::new(sort, false, true);
    model.take(&mut sample());
    model
}

fn pods(model: &Model) -> Vec<&str> {
    model.rows().map(|row| row.names.pod.split('-').next().unwrap_or_default()).collect()
}

fn press(model: &mut Model, keys: &str) {
    for key in keys.chars() {
        assert!(!model.press(KeyCode::Char(key)), "{key} ends it");
    }
}

#[test]
fn who_reaches_the_limit_first_is_first_and_then_who_is_nearest_to_it() {
    let mut model = model(Sort::Time);
    assert_eq!(pods(&model), ["job", "cache", "web", "db", "node"]);
    assert_eq!(model.count(), 5, "a sandbox is no row");
    press(&mut model, "r");
    assert_eq!(pods(&model), ["cache", "job", "web", "db", "node"], "what is not known stays last");
}

#[test]
fn every_order_can_be_reached_by_its_key() {
    let mut model = model(Sort::Time);
    let mut seen = Vec::new();
    for _ in Sort::ALL {
        seen.push((model.order().0, pods(&model)[0].to_owned()));
        press(&mut model, "s");
    }
    let first = |sort| seen.iter().find(|(of, _)| *of == sort).map(|(_, first)| first.as_str());
    assert_eq!(model.order().0, Sort::Time, "it goes round");
    for (sort, pod) in [
        (Sort::Share, "job"),
        (Sort::Usage, "cache"),
        (Sort::Rate, "job"),
        (Sort::Throttled, "cache"),
        (Sort::Oom, "job"),
        (Sort::Name, "db"),
    ] {
        assert_eq!(first(sort), Some(pod), "{sort:?}");
    }
}

#[test]
fn samples_for_programs_are_in_the_same_order() {
    let (mut model, mut sample) = (Model::new(Sort::Time, false, true), sample());
    model.take(&mut sample);
    let ids: Vec<_> =
        sample.containers.iter().map(|usage| usage.container.as_ref().unwrap().cgroup_id).collect();
    assert_eq!(ids, [2, 3, 1, 5, 4]);
}

#[test]
fn a_row_without_a_limit_has_no_share() {
    let model = model(Sort::Name);
    let share = |pod: &str| model.rows().find(|row| row.names.pod.starts_with(pod)).unwrap().share();
    assert_eq!((share("web"), share("node"), share("db")), (Some(0.5), None, None));
    let mut of_zero = container(1, "prod", "web-0", "nginx");
    of_zero.memory_limit = value(0);
    assert_eq!(Row::new(&of_zero).share(), None);
}

#[test]
fn the_worst_verdict_counts() {
    let model = model(Sort::Time);
    let of_cache = model.rows().find(|row| row.names.pod == "cache-0").unwrap();
    assert_eq!(of_cache.verdict, Some(("cpu.max".to_owned(), proto::VerdictKind::OverLimit)));
}

#[test]
fn a_selection_stays_with_its_row() {
    let mut model = model(Sort::Time);
    assert_eq!((model.selected_row(), &*model.detailed().unwrap().names.container), (None, "importer"));
    press(&mut model, "jj");
    assert_eq!((model.selected_row(), &*model.detailed().unwrap().names.container), (Some(1), "redis"));
    press(&mut model, "s");
    assert_eq!(model.detailed().unwrap().names.container, "redis");
    press(&mut model, "G");
    assert_eq!(model.selected_row(), Some(4));
    for _ in 0..20 {
        assert!(!model.press(KeyCode::Down));
    }
    assert_eq!(model.selected_row(), Some(4));
    press(&mut model, "g");
    assert_eq!(model.selected_row(), Some(0));
    let mut empty = Model::new(Sort::Time, false, true);
    press(&mut empty, "jkgG");
    assert!(empty.detailed().is_none());
}

#[test]
fn a_filter_shows_some_rows_and_is_dropped_with_escape() {
    let mut model = model(Sort::Time);
    press(&mut model, "/PROD/");
    assert_eq!(model.mode(), Mode::Filter);
    assert_eq!(pods(&model), ["job", "cache", "web"]);
    // Letters are text now.
    press(&mut model, "q");
    assert_eq!(model.rows().count(), 0);
    assert!(!model.press(KeyCode::Backspace) && !model.press(KeyCode::Enter));
    assert_eq!((model.mode(), model.rows().count()), (Mode::Rows, 3));
    assert!(!model.press(KeyCode::Esc));
    assert_eq!(model.rows().count(), 5);
    press(&mut model, "/");
    press(&mut model, &"x".repeat(2 * FILTER_MAX));
    assert_eq!(model.filter().len(), FILTER_MAX);
}

#[test]
fn q_ends_it_and_any_key_leaves_the_help() {
    let mut model = model(Sort::Time);
    press(&mut model, "?");
    assert_eq!(model.mode(), Mode::Help);
    press(&mut model, "s");
    assert_eq!((model.mode(), model.order().0), (Mode::Rows, Sort::Time));
    assert!(model.press(KeyCode::Char('q')));
    press(&mut model, "?");
    assert!(model.press(KeyCode::Char('q')));
}
