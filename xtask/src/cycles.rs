//! The `cycles` task: the top-level modules of a crate form no circle of imports.
//!
//! A module depends on another where its code, that of its submodules included, names a path into it: in a `use`, in an
//! expression, or in a macro's arguments. A name that the crate's root re-exports counts for the module that it comes from.
//! Code under `#[cfg(test)]` does not count, nor do the items of the root itself: they stand above all modules.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use proc_macro2::{Delimiter, TokenStream, TokenTree};
use quote::ToTokens as _;
use serde::Deserialize;
use syn::{Item, ItemMod, UseTree};

use crate::run;
use crate::workspace::Workspace;

/// Fails if any crate of the workspace has a circle.
pub fn task(workspace: &Workspace) -> Result<()> {
    let (mut targets, mut circles) = (0, String::new());
    for (name, root) in targets_of(workspace)? {
        let graph = Graph::read(&root).with_context(|| format!("read the modules of {name}"))?;
        targets += 1;
        for circle in graph.circles() {
            let modules: Vec<_> = circle.iter().map(|name| format!("`{name}`")).collect();
            writeln!(circles, "{name}: {} import each other", modules.join(", "))?;
            for (from, to, location) in graph.edges(&circle) {
                let file = location.file.strip_prefix(&workspace.root).unwrap_or(&location.file);
                writeln!(circles, "  {from} -> {to:<16} {}:{}", file.display(), location.line)?;
            }
        }
    }
    ensure!(circles.is_empty(), "circles of imports between top-level modules:\n{circles}");
    println!("no circles of imports in {targets} crates");
    Ok(())
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    targets: Vec<Target>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
    src_path: PathBuf,
}

/// The root files of all crates of the workspace, by names for people.
fn targets_of(workspace: &Workspace) -> Result<Vec<(String, PathBuf)>> {
    let mut command = run::cargo();
    command.current_dir(&workspace.root).args(["metadata", "--no-deps", "--format-version", "1"]);
    let metadata: Metadata =
        serde_json::from_str(&run::output(&mut command)?).context("parse cargo's metadata")?;
    let targets = metadata.packages.into_iter().flat_map(|package| {
        let name = package.name;
        package.targets.into_iter().map(move |target| {
            let kind = target.kind.join(" ");
            (format!("{name} ({kind} {})", target.name), target.src_path)
        })
    });
    Ok(targets.collect())
}

struct Location {
    file: PathBuf,
    line: usize,
}

/// For each top-level module those that it names.
#[derive(Default)]
struct Graph(BTreeMap<String, BTreeMap<String, Location>>);

impl Graph {
    fn read(root: &Path) -> Result<Self> {
        let directory = root.parent().context("the root file has no directory")?;
        let items = parse(root)?;
        let mut names: BTreeMap<String, String> = BTreeMap::new();
        for item in &items {
            if let (Item::Mod(module), false) = (item, is_test(item)) {
                names.insert(module.ident.to_string(), module.ident.to_string());
            }
        }
        let modules: BTreeSet<_> = names.keys().cloned().collect();
        for item in &items {
            if let (Item::Use(item), false) = (item, is_test(item)) {
                reexports(&item.tree, None, &modules, &mut names);
            }
        }
        let mut graph = Self::default();
        for item in items {
            if let (Item::Mod(module), false) = (&item, is_test(&item)) {
                let name = module.ident.to_string();
                graph.0.entry(name.clone()).or_default();
                let mut reader = Reader { graph: &mut graph, names: &names, module: name };
                reader.module(module, root, directory, 1)?;
            }
        }
        Ok(graph)
    }

    /// The sets of modules that reach each other.
    fn circles(&self) -> Vec<BTreeSet<&str>> {
        let reached: BTreeMap<_, _> = self.0.keys().map(|from| (from.as_str(), self.reach(from))).collect();
        let mut circles = BTreeSet::new();
        for (from, all) in &reached {
            let back = all.iter().filter(|to| reached.get(*to).is_some_and(|all| all.contains(from)));
            let circle: BTreeSet<&str> = back.copied().collect();
            if circle.len() > 1 {
                circles.insert(circle);
            }
        }
        circles.into_iter().collect()
    }

    fn reach<'a>(&'a self, from: &'a str) -> BTreeSet<&'a str> {
        let mut reached = BTreeSet::new();
        let mut ahead = vec![from];
        while let Some(name) = ahead.pop() {
            for to in self.0.get(name).into_iter().flat_map(BTreeMap::keys) {
                if reached.insert(to.as_str()) {
                    ahead.push(to);
                }
            }
        }
        reached
    }

    fn edges<'a>(
        &'a self,
        circle: &'a BTreeSet<&str>,
    ) -> impl Iterator<Item = (&'a str, &'a str, &'a Location)> {
        let modules = self.0.iter().filter(|(from, _)| circle.contains(from.as_str()));
        modules.flat_map(move |(from, edges)| {
            let within = edges.iter().filter(|(to, _)| circle.contains(to.as_str()));
            within.map(move |(to, location)| (from.as_str(), to.as_str(), location))
        })
    }
}

/// Reads one top-level module with all below it.
struct Reader<'a> {
    graph: &'a mut Graph,
    /// What a path of the crate's root may begin with, and the top-level module that it leads to.
    names: &'a BTreeMap<String, String>,
    module: String,
}

impl Reader<'_> {
    /// Reads a module declared in `file`, whose submodules' files are in `directory`, at that depth below the root.
    fn module(&mut self, module: &ItemMod, file: &Path, directory: &Path, depth: usize) -> Result<()> {
        let name = module.ident.to_string();
        let inner = directory.join(&name);
        if let Some((_, items)) = &module.content {
            return self.items(items, file, &inner, depth);
        }
        let files = [directory.join(format!("{name}.rs")), inner.join("mod.rs")];
        let Some(found) = files.iter().find(|path| path.is_file()) else {
            bail!("{} declares the module {name}, which has no file", file.display());
        };
        self.items(&parse(found)?, found, &inner, depth)
    }

    fn items(&mut self, items: &[Item], file: &Path, directory: &Path, depth: usize) -> Result<()> {
        for item in items.iter().filter(|item| !is_test(item)) {
            match item {
                Item::Mod(module) => self.module(module, file, directory, depth + 1)?,
                other => self.paths(other.to_token_stream(), file, depth),
            }
        }
        Ok(())
    }

    /// Notes each path from the crate's root that the tokens have in them.
    fn paths(&mut self, tokens: TokenStream, file: &Path, depth: usize) {
        let mut tokens = tokens.into_iter().peekable();
        while let Some(token) = tokens.next() {
            match token {
                TokenTree::Group(group) => self.paths(group.stream(), file, depth),
                TokenTree::Ident(ident) if ident == "crate" || ident == "super" => {
                    let mut above = if ident == "crate" { depth } else { 1 };
                    let line = ident.span().start().line;
                    loop {
                        let colons = [tokens.next(), tokens.next()];
                        if !colons.iter().all(
                            |token| matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == ':'),
                        ) {
                            break;
                        }
                        match tokens.next() {
                            Some(TokenTree::Ident(next)) if next == "super" => above += 1,
                            Some(TokenTree::Ident(next)) => {
                                if above == depth {
                                    self.note(&next.to_string(), file, line);
                                }
                                break;
                            }
                            Some(TokenTree::Group(group)) => {
                                if above == depth && group.delimiter() == Delimiter::Brace {
                                    for name in first_idents(group.stream()) {
                                        self.note(&name, file, line);
                                    }
                                }
                                break;
                            }
                            _ => break,
                        }
                    }
                }
                _ => {}
            }
        }
    }

    fn note(&mut self, name: &str, file: &Path, line: usize) {
        let Some(to) = self.names.get(name).filter(|to| **to != self.module) else { return };
        let edges = self.graph.0.entry(self.module.clone()).or_default();
        edges.entry(to.clone()).or_insert_with(|| Location { file: file.to_owned(), line });
    }
}

/// The first identifier of each element of `a::b, c, d::{e}`.
fn first_idents(tokens: TokenStream) -> Vec<String> {
    let mut idents = Vec::new();
    let mut at_start = true;
    for token in tokens {
        match token {
            TokenTree::Ident(ident) if at_start => {
                idents.push(ident.to_string());
                at_start = false;
            }
            TokenTree::Punct(punct) if punct.as_char() == ',' => at_start = true,
            _ => {}
        }
    }
    idents
}

/// Adds the names that a `use` of the crate's root takes out of its modules.
fn reexports(
    tree: &UseTree,
    module: Option<&str>,
    modules: &BTreeSet<String>,
    names: &mut BTreeMap<String, String>,
) {
    match tree {
        UseTree::Path(path) => {
            let first = path.ident.to_string();
            let is_root = first == "crate" || first == "self";
            match module {
                Some(module) => reexports(&path.tree, Some(module), modules, names),
                None if is_root => reexports(&path.tree, None, modules, names),
                None if modules.contains(&first) => reexports(&path.tree, Some(&first), modules, names),
                None => {}
            }
        }
        UseTree::Group(group) => {
            group.items.iter().for_each(|tree| reexports(tree, module, modules, names));
        }
        UseTree::Name(_) | UseTree::Rename(_) => {
            let name = match tree {
                UseTree::Rename(rename) => rename.rename.to_string(),
                other => other.to_token_stream().to_string(),
            };
            if let Some(module) = module {
                names.entry(name).or_insert_with(|| module.to_owned());
            }
        }
        // Whatever it brings: the modules name it where they use it from.
        _ => {}
    }
}

fn parse(file: &Path) -> Result<Vec<Item>> {
    let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    Ok(syn::parse_file(&text).with_context(|| format!("parse {}", file.display()))?.items)
}

fn is_test(item: &Item) -> bool {
    let mut tokens = item.to_token_stream().into_iter();
    while let (Some(TokenTree::Punct(punct)), Some(TokenTree::Group(group))) = (tokens.next(), tokens.next())
    {
        if punct.as_char() != '#' {
            return false;
        }
        if group.stream().to_string().replace(' ', "") == "cfg(test)" {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A crate of these files, by name, and its circles.
    fn circles(files: &[(&str, &str)]) -> Vec<String> {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let graph = Graph::read(&directory.path().join("lib.rs")).unwrap();
        graph.circles().iter().map(|circle| circle.iter().copied().collect::<Vec<_>>().join(" ")).collect()
    }

    const ROOT: (&str, &str) = ("lib.rs", "mod a; mod b; mod c; pub use b::Thing;");

    #[test]
    fn every_way_to_name_a_module_counts() {
        for a in [
            "use crate::b::X;",
            "use crate::{c::Y, b::X};",
            "use super::b::X;",
            "fn f() { crate::b::x(); }",
            "fn f() { println!(\"{}\", crate::b::x()); }",
            "mod inner { use super::super::b::X; }",
            "use crate::Thing;",
        ] {
            let files = [
                ROOT,
                ("a.rs", a),
                ("b/mod.rs", "mod inner;"),
                ("b/inner.rs", "use crate::a::Z;"),
                ("c.rs", ""),
            ];
            assert_eq!(circles(&files), ["a b"], "{a}");
        }
    }

    #[test]
    fn a_longer_circle_is_one() {
        let files =
            [ROOT, ("a.rs", "use crate::b::X;"), ("b.rs", "use crate::c::X;"), ("c.rs", "use crate::a::X;")];
        assert_eq!(circles(&files), ["a b c"]);
    }

    #[test]
    fn tests_and_own_submodules_do_not_count() {
        let a = "use crate::b::X; mod inner { use super::Y; use crate::a::Y; } #[cfg(test)] mod tests { use crate::c::X; }";
        let files =
            [ROOT, ("a.rs", a), ("b.rs", "#[cfg(test)] use crate::a::Y;"), ("c.rs", "use crate::a::Y;")];
        assert_eq!(circles(&files), Vec::<String>::new());
    }
}
