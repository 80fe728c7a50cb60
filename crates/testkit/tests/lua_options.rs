//! The options of the Lua library, with whatever values somebody may write there: see options.lua.

use std::path::Path;
use std::process::Command;

use testkit::artifacts::library_folder;

#[test]
fn any_options_are_accepted_or_refused_with_a_message() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for seed in 1..=3 {
        let ran = Command::new("luajit")
            .arg(root.join("tests/options.lua"))
            .args([seed.to_string(), "20000".to_owned()])
            .env("LUA_PATH", format!("{}/?.lua", root.join("../../lua").display()))
            .env("LUA_CPATH", format!("{}/?.so", library_folder().display()))
            .output()
            .expect("luajit");
        let said = String::from_utf8_lossy(&ran.stdout);
        assert!(ran.status.success(), "{said}{}", String::from_utf8_lossy(&ran.stderr));
        // Neither is rare, or this tests little.
        let counts: Vec<u32> = said.split(' ').filter_map(|word| word.parse().ok()).collect();
        assert!(counts.len() == 2 && counts.iter().all(|&count| count > 1000), "{said}");
    }
}
