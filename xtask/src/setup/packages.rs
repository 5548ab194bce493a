//! nfpm, which makes deb and rpm of one description, built from its Go module.

use anyhow::Result;

use super::go;
use crate::step::Step;
use crate::versions::NFPM;
use crate::workspace::Cache;

const MODULE: go::Module = go::module!("packages");
/// Its name in the cache's tools.
pub const NAME: &str = "nfpm";

pub fn ensure(cache: &Cache) -> Result<()> {
    let nfpm = cache.tool(NAME);
    let mut inputs = vec![NFPM];
    inputs.extend(MODULE.texts());
    Step { name: &format!("nfpm {NFPM}"), inputs: &inputs, outputs: &[&nfpm] }.run(cache, || {
        MODULE.build(cache, &[(&["build"], "github.com/goreleaser/nfpm/v2/cmd/nfpm", "-s -w")])
    })
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
