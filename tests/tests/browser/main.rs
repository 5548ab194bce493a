//! The page of `kwitness timeline -o html` in a real browser without a network: what it shows, and what a click does.

mod devtools;

use std::fs;
use std::path::Path;
use std::process::Command;

use kwitness_tests::prelude::*;
use kwitness_tests::process::run;

use devtools::{Browser, Page};

/// Gives the mark of the first OOM kill a name, by which it can be clicked.
const KILLED: &str = "[...document.querySelectorAll('#chart .mark')]\
                      .find((mark) => mark.textContent.startsWith('OOMKilled')).id = 'killed'";
/// The pod of the incident that ships with the program.
const POD: &str = "greedy";

fn main() -> Result<()> {
    let ctx = TestContext::new()?;
    let cases = vec![
        Case::new("the_timeline_answers_clicks", the_timeline_answers_clicks),
        Case::new("the_timeline_is_light_and_dark", the_timeline_is_light_and_dark),
    ];
    suite::run(ctx, cases)
}

fn page(ctx: &TestContext, directory: &Path) -> Result<std::path::PathBuf> {
    let (recording, page) = (directory.join("incident.kwr"), directory.join("timeline.html"));
    let kwitness = || Command::new(ctx.environment.kwitness());
    run(kwitness().args(["demo", "--save"]).arg(&recording))?;
    let text = run(kwitness().args(["timeline", POD, "-o", "html", "--file"]).arg(&recording))?;
    fs::write(&page, text).with_context(|| format!("write {}", page.display()))?;
    Ok(page)
}

/// Nothing but the file is requested, no script fails, a mark says what it is when it is clicked, a row moves the chart, and the
/// buttons zoom.
fn the_timeline_answers_clicks(ctx: &TestContext) -> Result<()> {
    let directory = tempfile::tempdir().context("make a directory")?;
    let file = page(ctx, directory.path())?;
    let mut browser = Browser::start(directory.path())?;
    let mut page = browser.open(&file)?;
    ensure!(page.text("document.querySelector('h1').textContent")?.contains(POD), "another subject");
    ensure!(page.text("document.getElementById('answers').textContent")?.contains("OOM killer"), "no answer");
    ensure!(page.number("document.querySelectorAll('#chart .item').length")? > 0.0, "an empty chart");

    let before = page.screenshot()?;
    page.text(KILLED)?;
    page.click("#killed")?;
    let detail = page.text("document.getElementById('detail').textContent")?;
    ensure!(detail.starts_with("OOMKilled at "), "a click on the mark shows: {detail}");
    ensure!(
        page.number("document.querySelectorAll('#chart .selected').length")? == 1.0,
        "nothing is selected"
    );
    ensure!(page.screenshot()? != before, "the screen is the same after a click");

    let range = |page: &mut Page<'_>| page.text("document.getElementById('range').textContent");
    let all = range(&mut page)?;
    page.click("#in")?;
    let part = range(&mut page)?;
    ensure!(part != all, "the button does not zoom: {all}");
    page.click("#events tbody tr:last-child")?;
    ensure!(range(&mut page)? != part, "a row does not move the chart");
    ensure!(
        page.number("document.querySelectorAll('#events tr.selected').length")? == 1.0,
        "no row is selected"
    );
    page.click("#fit")?;
    ensure!(range(&mut page)? == all, "the whole is not shown again");
    page.check_quiet(&file)
}

/// Both schemes have a ground and a text of their own, which the screen shows.
fn the_timeline_is_light_and_dark(ctx: &TestContext) -> Result<()> {
    const COLORS: &str =
        "getComputedStyle(document.body).backgroundColor + getComputedStyle(document.body).color";
    let directory = tempfile::tempdir().context("make a directory")?;
    let file = page(ctx, directory.path())?;
    let mut browser = Browser::start(directory.path())?;
    let mut page = browser.open(&file)?;
    let mut seen = Vec::new();
    for scheme in ["light", "dark"] {
        page.prefer(scheme)?;
        seen.push((page.text(COLORS)?, page.screenshot()?));
    }
    ensure!(seen[0].0 == "rgb(255, 255, 255)rgb(27, 31, 36)", "light: {}", seen[0].0);
    ensure!(seen[1].0 == "rgb(20, 24, 29)rgb(228, 232, 236)", "dark: {}", seen[1].0);
    ensure!(seen[0].1 != seen[1].1, "the screen is the same");
    page.check_quiet(&file)
}
