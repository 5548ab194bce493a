//! The `cycles` task: the modules of a crate form no circle of imports, at any depth.
//!
//! A module depends on a sibling where its code, that of its submodules included, names a path into the sibling: in a `use`, in
//! an expression, or in a macro's arguments. A name that their parent takes out of a sibling counts for that sibling. Modules of
//! different parents are compared where their paths part: `a::x` that names `b::y` makes `a` depend on `b`.
//!
//! A parent stands above its submodules: it may declare, re-export and use them, and they may use its items. Neither counts.
//! Code under `#[cfg(test)]` does not count.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use proc_macro2::{Delimiter, Ident, TokenStream, TokenTree};
use quote::ToTokens as _;
use serde::Deserialize;
use syn::{
    Attribute, Expr, ExprLit, Item, ItemMod, Lit, Meta, MetaNameValue, UseName, UsePath, UseRename, UseTree,
};

use crate::run;
use crate::workspace::Workspace;

/// Fails if any crate of the workspace has a circle.
pub fn task(workspace: &Workspace) -> Result<()> {
    let (mut targets, mut circles) = (0, String::new());
    for (name, root) in targets_of(workspace)? {
        let modules = Modules::read(&root).with_context(|| format!("read the modules of {name}"))?;
        targets += 1;
        for (parent, graph) in modules.graphs() {
            for circle in graph.circles() {
                let full =
                    |module: &&str| format!("`{}`", [&*parent, &[(*module).to_owned()]].concat().join("::"));
                let modules: Vec<_> = circle.iter().map(full).collect();
                writeln!(circles, "{name}: {} import each other", modules.join(", "))?;
                for (from, to, location) in graph.edges(&circle) {
                    let file = location.file.strip_prefix(&workspace.root).unwrap_or(&location.file);
                    writeln!(circles, "  {from} -> {to:<16} {}:{}", file.display(), location.line)?;
                }
            }
        }
    }
    ensure!(circles.is_empty(), "circles of imports between modules:\n{circles}");
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

/// For each module of one parent, the siblings that it names.
#[derive(Default)]
struct Graph(BTreeMap<String, BTreeMap<String, Location>>);

impl Graph {
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

/// The names of the modules from the root to one, which has none.
type ModulePath = Vec<String>;

/// A module without those in it.
struct Module {
    file: PathBuf,
    items: Vec<Item>,
    /// What a path into it may go on with, and the submodule that it leads to.
    names: BTreeMap<String, String>,
}

/// The modules of a crate.
#[derive(Default)]
struct Modules(BTreeMap<ModulePath, Module>);

impl Modules {
    fn read(root: &Path) -> Result<Self> {
        let directory = root.parent().context("the root file has no directory")?;
        let mut modules = Self::default();
        modules.add(Vec::new(), parse(root)?, root, directory)?;
        Ok(modules)
    }

    /// Adds a module of `file`, whose submodules' files are in `directory`, and those.
    fn add(&mut self, path: ModulePath, items: Vec<Item>, file: &Path, directory: &Path) -> Result<()> {
        let mut own = Vec::new();
        let mut names = BTreeMap::new();
        for item in items.into_iter().filter(|item| !is_test(item)) {
            let Item::Mod(ItemMod { ident, content, attrs, .. }) = item else {
                own.push(item);
                continue;
            };
            let name = ident.to_string();
            let inner = directory.join(&name);
            let inside = [path.clone(), vec![name.clone()]].concat();
            if let Some((_, items)) = content {
                self.add(inside, items, file, &inner)?;
            } else if let Some(found) = attrs.iter().find_map(path_of) {
                let found = file.with_file_name(found);
                self.add(inside, parse(&found)?, &found, &inner)?;
            } else {
                let files = [directory.join(format!("{name}.rs")), inner.join("mod.rs")];
                let Some(found) = files.iter().find(|path| path.is_file()) else {
                    bail!("{} declares the module {name}, which has no file", file.display());
                };
                self.add(inside, parse(found)?, found, &inner)?;
            }
            names.insert(name.clone(), name);
        }
        let mut taken = Vec::new();
        for item in &own {
            if let Item::Use(item) = item {
                leaves(&item.tree, &path, &path, &names, &mut taken);
            }
        }
        for (name, target) in taken {
            if let Some(module) = target.strip_prefix(&*path).and_then(<[_]>::first)
                && names.get(module) == Some(module)
            {
                names.entry(name).or_insert_with(|| module.clone());
            }
        }
        self.0.insert(path, Module { file: file.to_owned(), items: own, names });
        Ok(())
    }

    /// The graph of each parent's modules.
    fn graphs(&self) -> BTreeMap<ModulePath, Graph> {
        let mut graphs: BTreeMap<ModulePath, Graph> = BTreeMap::new();
        for (path, module) in &self.0 {
            let mut tokens = TokenStream::new();
            module.items.iter().for_each(|item| item.to_tokens(&mut tokens));
            named(tokens, path, &mut |target: &[String], line| {
                let Some((parent, from, to)) = self.edge(path, target) else { return };
                let edges = graphs.entry(parent).or_default().0.entry(from).or_default();
                edges.entry(to).or_insert_with(|| Location { file: module.file.clone(), line });
            });
        }
        graphs
    }

    /// The parent of the two modules that a path in `from` connects, and their names; none if one is above the other.
    fn edge(&self, from: &[String], target: &[String]) -> Option<(ModulePath, String, String)> {
        let common = from.iter().zip(target).take_while(|(from, target)| from == target).count();
        let (own, named) = (from.get(common)?, target.get(common)?);
        let parent = from.get(..common)?.to_vec();
        let to = self.0.get(&parent)?.names.get(named)?;
        (to != own).then(|| (parent, own.clone(), to.clone()))
    }
}

/// Reports each path from the crate's root, or from a module above, that the tokens of the module `at` have in them.
fn named(tokens: TokenStream, at: &[String], report: &mut impl FnMut(&[String], usize)) {
    let tokens: Vec<_> = tokens.into_iter().collect();
    let mut index = 0;
    while let Some(token) = tokens.get(index) {
        index += 1;
        match token {
            TokenTree::Group(group) => named(group.stream(), at, report),
            TokenTree::Ident(ident) if ident == "crate" => {
                index = follow(&tokens, index, Vec::new(), report);
            }
            TokenTree::Ident(ident) if ident == "super" => {
                index = follow(&tokens, index, above(at), report);
            }
            _ => {}
        }
    }
}

fn above(path: &[String]) -> ModulePath {
    path.split_last().map_or_else(Vec::new, |(_, above)| above.to_vec())
}

/// Follows `::a::b` or `::{a, b::c}` behind the beginning of a path. Returns the index of what comes after it.
fn follow(
    tokens: &[TokenTree],
    mut index: usize,
    mut path: ModulePath,
    report: &mut impl FnMut(&[String], usize),
) -> usize {
    let is_colon = |token: &TokenTree| matches!(token, TokenTree::Punct(punct) if punct.as_char() == ':');
    let line = tokens.get(index - 1).map_or(0, |token| token.span().start().line);
    while let Some([first, second, next]) = tokens.get(index..index + 3)
        && is_colon(first)
        && is_colon(second)
    {
        match next {
            TokenTree::Ident(ident) => step(&mut path, ident),
            TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => {
                let branches: Vec<_> = group.stream().into_iter().collect();
                for branch in
                    branches.split(|token| matches!(token, TokenTree::Punct(punct) if punct.as_char() == ','))
                {
                    if let Some(TokenTree::Ident(ident)) = branch.first() {
                        let mut path = path.clone();
                        step(&mut path, ident);
                        follow(branch, 1, path, report);
                    }
                }
                return index + 3;
            }
            _ => break,
        }
        index += 3;
    }
    report(&path, line);
    index
}

fn step(path: &mut ModulePath, ident: &Ident) {
    match ident.to_string().as_str() {
        "super" => drop(path.pop()),
        "self" => {}
        name => path.push(name.to_owned()),
    }
}

/// The names that a `use` of the module `at` brings into it, each with its path from the root. `prefix` is where the tree begins.
fn leaves(
    tree: &UseTree,
    at: &[String],
    prefix: &[String],
    children: &BTreeMap<String, String>,
    leaf: &mut Vec<(String, ModulePath)>,
) {
    match tree {
        UseTree::Path(UsePath { ident, tree, .. }) => {
            let mut path = prefix.to_vec();
            match ident.to_string().as_str() {
                "crate" => path.clear(),
                // Another crate's.
                name if prefix == at && !matches!(name, "self" | "super") && !children.contains_key(name) => {
                    return;
                }
                _ => step(&mut path, ident),
            }
            leaves(tree, at, &path, children, leaf);
        }
        UseTree::Group(group) => {
            group.items.iter().for_each(|tree| leaves(tree, at, prefix, children, leaf));
        }
        UseTree::Name(UseName { ident }) | UseTree::Rename(UseRename { ident, .. }) => {
            let name = match tree {
                UseTree::Rename(rename) => &rename.rename,
                _ => ident,
            };
            let mut path = prefix.to_vec();
            step(&mut path, ident);
            leaf.push((name.to_string(), path));
        }
        // Whatever it brings: the modules name it where they use it from.
        UseTree::Glob(_) => {}
    }
}

fn parse(file: &Path) -> Result<Vec<Item>> {
    let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    Ok(syn::parse_file(&text).with_context(|| format!("parse {}", file.display()))?.items)
}

/// The file of a module, as its attribute `path` names it.
fn path_of(attribute: &Attribute) -> Option<String> {
    let Meta::NameValue(MetaNameValue {
        path, value: Expr::Lit(ExprLit { lit: Lit::Str(file), .. }), ..
    }) = &attribute.meta
    else {
        return None;
    };
    path.is_ident("path").then(|| file.value())
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
        let graphs = Modules::read(&directory.path().join("lib.rs")).unwrap().graphs();
        let circle = |parent: &ModulePath, circle: BTreeSet<&str>| {
            let names = circle.into_iter().map(|name| [&**parent, &[name.to_owned()]].concat().join("::"));
            names.collect::<Vec<_>>().join(" ")
        };
        let of = |(parent, graph): (&ModulePath, &Graph)| {
            graph.circles().into_iter().map(|of| circle(parent, of)).collect::<Vec<_>>()
        };
        graphs.iter().flat_map(of).collect()
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
    fn a_module_may_have_its_file_elsewhere() {
        let root = ("lib.rs", "#[path = \"elsewhere/of_a.rs\"] mod a; mod b;");
        let files = [root, ("elsewhere/of_a.rs", "use crate::b::X;"), ("b.rs", "use crate::a::X;")];
        assert_eq!(circles(&files), ["a b"]);
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

    #[test]
    fn nested_modules_form_no_circle_either() {
        let root = ("lib.rs", "mod p;");
        for (parent, x, y) in [
            ("mod x; mod y;", "use super::y::Y;", "use super::x::X;"),
            ("mod x; mod y;", "use super::{Z, y::Y};", "use crate::p::{x::X};"),
            (
                "mod x; mod y; pub use y::Y; use self::x::X;",
                "use super::Y;",
                "fn f() { super::X::new(crate::f()); }",
            ),
        ] {
            let files = [root, ("p/mod.rs", parent), ("p/x.rs", x), ("p/y.rs", y)];
            assert_eq!(circles(&files), ["p::x p::y"], "{x}");
        }
    }

    #[test]
    fn a_parent_and_its_submodules_may_use_each_other() {
        let parent = "mod x; mod y; pub use x::X; pub struct Z; fn f() { y::g(); }";
        let files = [
            ("lib.rs", "mod p; mod q; pub use p::X;"),
            ("p/mod.rs", parent),
            ("p/x.rs", "use super::Z; use super::y::Y; use crate::q::Q;"),
            ("p/y.rs", "use super::Z; use crate::p;"),
            ("q.rs", ""),
        ];
        assert_eq!(circles(&files), Vec::<String>::new());
    }
}
