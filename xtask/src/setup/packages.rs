//! nfpm, which makes deb and rpm of one description, built from its Go module.

use anyhow::Result;

use super::go;
use crate::versions::NFPM;
use crate::workspace::Cache;

const MODULE: go::Module = go::module!("packages");
/// Its name in the cache's tools.
pub const NAME: &str = "nfpm";

pub fn ensure(cache: &Cache) -> Result<()> {
    let inputs: Vec<_> = [NFPM].into_iter().chain(MODULE.texts()).collect();
    let programs = [(go::BUILD, "github.com/goreleaser/nfpm/v2/cmd/nfpm", "-s -w")];
    MODULE.ensure(cache, &format!("nfpm {NFPM}"), &inputs, &programs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_is_what_the_module_pins() {
        assert!(
            MODULE.texts().any(|text| text.contains(&format!("github.com/goreleaser/nfpm/v2 v{NFPM}\n")))
        );
    }
}
