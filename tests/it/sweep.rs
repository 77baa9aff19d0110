//! One pipeline under several settings: what is embedded once, what is compared, what is said.

use serde_json::Value;

use crate::html::check_in_browser;
use crate::support::Shop;

/// Three classes, twelve pictures and twelve queries each.
fn shop(more: &str) -> Shop {
    let shop = Shop::new();
    for i in 0..36 {
        let class = ["cat", "dog", "owl"][i % 3];
        shop.picture(&format!("gallery/{class}/{i}.png"), i as u32 + 1);
        shop.picture(&format!("queries/{class}/{i}.png"), i as u32 + 101);
    }
    shop.pipeline(&format!(
        "[input]\ngallery = 'gallery'\nqueries = 'queries'\n[model]\nprecision = 'int8'\nprovider = 'openvino'\n{more}"
    ));
    shop
}

fn report(shop: &Shop) -> Value {
    let text = std::fs::read_to_string(shop.path("runs/shop/report/sweep.json")).expect("a report");
    serde_json::from_str(&text).expect("JSON")
}

#[test]
fn settings_spaces_engines_and_metrics_are_held_against_the_best() {
    let shop = shop(
        "[load]\nengine = ['flat', 'hnsw']\n[sweep]\npooling = ['max', 'avg']\nspace = ['stored', 'raw']\n",
    );
    let said = shop.imagedex("sweep").exits(0).says("has the highest MAP");
    let first = report(&shop);
    let cells = first["cells"].as_array().expect("cells");
    let of = |cell: &Value| {
        let setting = &cell["setting"];
        format!("{} {} {}", setting["pooling"], setting["space"], cell["evaluation"]["engine"])
            .replace('"', "")
    };
    let expected = ["max stored", "max raw", "avg stored", "avg raw"];
    let expected: Vec<String> =
        expected.iter().flat_map(|cell| ["flat", "hnsw"].map(|engine| format!("{cell} {engine}"))).collect();
    assert_eq!(cells.iter().map(of).collect::<Vec<_>>(), expected);
    assert_ne!(cells[0]["fingerprint"], cells[4]["fingerprint"], "another pooling is another model");
    assert_eq!(cells[0]["fingerprint"], cells[2]["fingerprint"], "another space is not");

    // The best first; each other one against it, query by query.
    let ranking = &first["rankings"][0];
    assert_eq!(ranking["queries"], 36);
    let rows = ranking["rows"].as_array().expect("rows");
    let maps: Vec<f64> = rows.iter().map(|row| row["map"].as_f64().expect("a number")).collect();
    assert!(maps.windows(2).all(|pair| pair[0] >= pair[1]), "{maps:?}");
    assert!(rows[0]["comparison"].is_null() && rows[1..].iter().all(|row| !row["comparison"].is_null()));
    for row in rows {
        let (low, high) = (row["interval"]["low"].as_f64(), row["interval"]["high"].as_f64());
        assert!(low <= row["map"].as_f64() && row["map"].as_f64() <= high, "{row}");
        assert!(said.out.contains(row["name"].as_str().expect("a name")), "{row} in {}", said.out);
    }
    // One ranking on vectors of length 1, several on raw ones; and a graph has no L1.
    let named = |text: &str| rows.iter().filter(|row| row["name"].as_str() == Some(text)).count();
    assert_eq!(named("max int8, flat: cosine = dot_product = l2"), 1, "{}", said.out);
    assert_eq!((named("max int8 raw, flat: cosine"), named("max int8 raw, flat: dot_product")), (1, 1));
    assert_eq!((named("max int8, flat: l1"), named("max int8, hnsw: l1")), (1, 0));

    // The page says the same, and is one that people can read.
    let page = shop.path("runs/shop/report/sweep.html");
    let text = std::fs::read_to_string(&page).expect("a page");
    for row in rows {
        let cell = format!("<bdi>{}</bdi>", row["name"].as_str().expect("a name"));
        assert!(text.contains(&cell), "{cell}");
    }
    check_in_browser(&page, &["has the highest MAP", "flat: cosine = dot_product = l2"]);

    // Again: nothing is embedded, and nothing differs.
    let again = shop.imagedex("sweep").exits(0);
    assert!(!again.err.contains("to embed") || again.err.contains("0 to embed"), "{}", again.err);
    assert_eq!(report(&shop), first);
}

#[test]
fn what_cannot_be_swept_is_said() {
    shop("").imagedex("sweep").exits(2).complains("no section [sweep]");
    let raw = shop("normalize = 'none'\n[sweep]\nspace = ['raw']\n");
    raw.imagedex("sweep").exits(2).complains("raw already");
    let server = shop("[load]\nengine = ['flat', 'elasticsearch']\n[sweep]\npooling = ['max']\n");
    server.imagedex("sweep").exits(2).complains("searches in memory");
}
