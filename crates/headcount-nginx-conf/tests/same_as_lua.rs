//! A node that is given no name gets the same one from the module and from `resty.headcount`.

use std::path::Path;
use std::process::Command;

use headcount_nginx_conf::default_node;

/// Has LuaJIT make the name, with no nginx around it.
fn name_by_lua(arguments: &[&str], prefix: &str, folder: &str) -> String {
    const SCRIPT: &str = r#"
        local bit = require "bit"
        local function crc32(text)
          local crc = bit.tobit(0xffffffff)
          for i = 1, #text do
            crc = bit.bxor(crc, text:byte(i))
            for _ = 1, 8 do
              local low = bit.band(crc, 1)
              crc = bit.bxor(bit.rshift(crc, 1), low == 1 and 0xedb88320 or 0)
            end
          end
          return bit.bnot(crc) % 2^32
        end
        ngx = { crc32_long = crc32 }
        package.preload["resty.headcount.nginx"] = function() return {} end
        local options = dofile(arg[1])
        local arguments = {}
        for i = 4, #arg do arguments[#arguments + 1] = arg[i] end
        io.write(options.default_node(arguments, arg[2], arg[3]))
    "#;
    let options = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../lua/resty/headcount/options.lua");
    let folder_of_script = tempfile::tempdir().expect("a folder");
    let script = folder_of_script.path().join("name.lua");
    std::fs::write(&script, SCRIPT).expect("our own file");
    let output =
        Command::new("luajit").arg(script).arg(options).args([prefix, folder]).args(arguments).output();
    let output = output.expect("luajit is there: scripts/setup test brings it");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn the_module_and_lua_make_the_same_name() {
    let long = format!("/srv/{}/nginx.conf", "very-".repeat(20));
    let cases: &[(&[&str], &str, &str, Option<&str>)] = &[
        (&[], "/usr/share/nginx/", "/", Some("nginx")),
        (&["-g", "daemon off;"], "/usr/share/nginx/", "/", Some("nginx")),
        (&["-c", "/srv/shop/nginx.conf"], "/usr/share/nginx/", "/", Some("nginx-srv-shop-nginx.conf")),
        (&["-c/srv/shop/nginx.conf"], "/usr/share/nginx/", "/", Some("nginx-srv-shop-nginx.conf")),
        (&["-qc", "/srv//shop/./nginx.conf"], "/usr/share/nginx/", "/", Some("nginx-srv-shop-nginx.conf")),
        (&["-c", "conf/nginx.conf"], "/usr/share/nginx/", "/", Some("nginx-usr-share-nginx-conf-nginx.conf")),
        (&["-p", "/srv/shop"], "/srv/shop", "/", Some("nginx-srv-shop")),
        (&["-p", "shop/"], "shop/", "/srv", Some("nginx-srv-shop")),
        (&["-p", "/srv/shop/", "-c", "x.conf"], "/srv/shop/", "/", Some("nginx-srv-shop-x.conf")),
        // With a checksum: a prefix and a configuration elsewhere, characters that are not allowed, a name that is too long.
        (&["-p", "/srv/a/", "-c", "/etc/x.conf"], "/srv/a/", "/", None),
        (&["-p", "/srv/b/", "-c", "/etc/x.conf"], "/srv/b/", "/", None),
        (&["-c", "/srv/my-shop/nginx.conf"], "/usr/share/nginx/", "/", None),
        (&["-c", "/srv/my_shop/nginx.conf"], "/usr/share/nginx/", "/", Some("nginx-srv-my_shop-nginx.conf")),
        (&["-c", "/srv/größe/nginx.conf"], "/usr/share/nginx/", "/", None),
        (&["-c", &long], "/usr/share/nginx/", "/", None),
    ];
    let mut names = Vec::new();
    for (arguments, prefix, folder, expected) in cases {
        let bytes: Vec<Vec<u8>> = arguments.iter().map(|a| a.as_bytes().to_vec()).collect();
        let name = default_node(&bytes, prefix.as_bytes(), folder.as_bytes());
        assert_eq!(name, name_by_lua(arguments, prefix, folder), "{arguments:?} below {prefix}");
        match expected {
            Some(expected) => assert_eq!(name, *expected, "{arguments:?} below {prefix}"),
            None => {
                let hex = name.rsplit('-').next().unwrap_or_default();
                assert!(hex.len() == 8 && name.len() <= 48, "{name}");
                names.push(name);
            }
        }
    }
    let number = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), number, "another path always gives another name: {names:?}");
}
