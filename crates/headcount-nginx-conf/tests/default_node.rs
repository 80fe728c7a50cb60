//! The name of a node whose nginx gives it none. It must stay: another one is another node, and continuity is lost.

use headcount::Options;
use headcount_nginx_conf::default_node;

#[test]
fn the_command_line_makes_the_name() {
    let long = format!("/srv/{}/nginx.conf", "very-".repeat(20));
    let cases: &[(&[&str], &str, &str, &str)] = &[
        (&[], "/usr/share/nginx/", "/", "nginx"),
        (&["-g", "daemon off;"], "/usr/share/nginx/", "/", "nginx"),
        (&["-c", "/srv/shop/nginx.conf"], "/usr/share/nginx/", "/", "nginx-srv-shop-nginx.conf"),
        (&["-c/srv/shop/nginx.conf"], "/usr/share/nginx/", "/", "nginx-srv-shop-nginx.conf"),
        (&["-qc", "/srv//shop/./nginx.conf"], "/usr/share/nginx/", "/", "nginx-srv-shop-nginx.conf"),
        (&["-c", "conf/nginx.conf"], "/usr/share/nginx/", "/", "nginx-usr-share-nginx-conf-nginx.conf"),
        (&["-p", "/srv/shop"], "/srv/shop", "/", "nginx-srv-shop"),
        (&["-p", "shop/"], "shop/", "/srv", "nginx-srv-shop"),
        (&["-p", "/srv/shop/", "-c", "x.conf"], "/srv/shop/", "/", "nginx-srv-shop-x.conf"),
        (&["-c", "/srv/my_shop/nginx.conf"], "/usr/share/nginx/", "/", "nginx-srv-my_shop-nginx.conf"),
        // With a checksum: a prefix and a configuration elsewhere, characters that are not allowed, a name that is too long.
        (&["-p", "/srv/a/", "-c", "/etc/x.conf"], "/srv/a/", "/", "nginx-etc-x.conf-57678187"),
        (&["-p", "/srv/b/", "-c", "/etc/x.conf"], "/srv/b/", "/", "nginx-etc-x.conf-2b06a45c"),
        (
            &["-c", "/srv/my-shop/nginx.conf"],
            "/usr/share/nginx/",
            "/",
            "nginx-srv-my-shop-nginx.conf-c6c14450",
        ),
        (&["-c", "/srv/größe/nginx.conf"], "/usr/share/nginx/", "/", "nginx-srv-gr____e-nginx.conf-1c0159f8"),
        (&["-c", &long], "/usr/share/nginx/", "/", "nginx-y-very-very-very-very--nginx.conf-a56fd709"),
    ];
    for (arguments, prefix, folder, expected) in cases {
        let bytes: Vec<Vec<u8>> = arguments.iter().map(|a| a.as_bytes().to_vec()).collect();
        let name = default_node(&bytes, prefix.as_bytes(), folder.as_bytes());
        assert_eq!(name, *expected, "{arguments:?} below {prefix}");
        assert!(Options::new(name).check().is_ok(), "{expected} is a name");
    }
}
