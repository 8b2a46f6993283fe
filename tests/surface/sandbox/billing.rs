//! Payments and subscription.

use serde_json::{Value, json};

use super::{ORG, World};

fn with_customer(mut body: Value) -> String {
    body["customer"] = json!({
        "email": "john@example.com", "name": "John Doe", "isBusiness": false, "countryId": 1,
        "city": "Prague", "line1": "Street 1", "line2": "Citypart 2",
    });
    body.to_string()
}

async fn product(world: &World) -> Value {
    world.get(&format!("{ORG}/subscription")).await.expect(200)["product"].clone()
}

#[tokio::test]
async fn payments_accumulate_and_buy_operations() {
    let world = World::start().await;
    let (pay, payments) = (format!("{ORG}/single-payment-create"), format!("{ORG}/payments"));
    assert_eq!(world.get(&payments).await.expect(200), json!({ "payments": [] }));
    for quantity in [1, 2] {
        let body =
            with_customer(json!({ "priceId": 200, "quantity": quantity, "couponCode": null, "doNotCharge": false }));
        assert_eq!(world.send("POST", &pay, &body).await.expect(200), json!({ "ok": 1 }));
    }
    let all = world.get(&format!("{payments}?pg[sortBy]=id")).await.expect(200);
    let amounts: Vec<&Value> =
        all["payments"].as_array().unwrap().iter().map(|payment| &payment["amount_total"]).collect();
    assert_eq!(amounts, ["18.00", "9.00"], "newest first");
    let first = world.get(&format!("{payments}?pg[sortBy]=id&pg[sortDir]=asc&pg[limit]=1")).await.expect(200);
    assert_eq!(first["payments"][0]["amount_total"], "9.00");
    assert_eq!(first["payments"].as_array().unwrap().len(), 1);
    assert_eq!(world.get(ORG).await.expect(200)["organization"]["operationsExt"], "30000");
    assert_eq!(world.sandbox.effects("POST", "/api/v2/organizations/*/single-payment-create"), 2);
}

#[tokio::test]
async fn a_payment_that_is_not_whole_is_refused_field_by_field() {
    let world = World::start().await;
    let pay = format!("{ORG}/single-payment-create");
    let body = r#"{"priceId": 200, "quantity": 0, "customer": {"email": "a@example.com"}}"#;
    let refused = world.send("POST", &pay, body).await.expect(400);
    assert_eq!(refused["suberrors"].as_array().unwrap().len(), 5, "{refused}");
    assert_eq!(world.send("POST", "/api/v2/organizations/999/single-payment-create", body).await.status, 404);
    assert_eq!(world.get("/api/v2/organizations/999/payments").await.status, 404);
    assert_eq!(world.get(&format!("{ORG}/payments?pg[sortDir]=up")).await.status, 400);
}

#[tokio::test]
async fn a_subscription_is_created_changed_and_ended() {
    let world = World::start().await;
    let path = format!("{ORG}/subscription");
    assert_eq!(product(&world).await["name"], "Teams");

    let body = with_customer(json!({ "priceId": 3, "couponCode": null, "doNotCharge": false }));
    let created = world.send("POST", &path, &body).await.expect(200);
    assert!(created["sessionId"].is_u64() && created["url"].is_string() && created["subscriptionId"].is_u64());
    let pro = product(&world).await;
    assert_eq!((&pro["name"], &pro["price"]["currencyCode"]), (&json!("Pro"), &json!("USD")));
    assert_eq!(world.get(&format!("{ORG}/payments")).await.expect(200)["payments"].as_array().unwrap().len(), 1);

    let changed = world.send("PATCH", &path, &with_customer(json!({ "priceId": 5 }))).await;
    assert_eq!(changed.expect(200), json!({ "ok": 1 }));
    assert_eq!(product(&world).await["id"], 5);
    assert_eq!(world.get(ORG).await.expect(200)["organization"]["serviceName"], "enterprise");

    assert_eq!(world.send("DELETE", &path, "").await.expect(200), json!({ "ok": 1 }));
    assert_eq!(world.get(&path).await.status, 404);
    assert_eq!(world.send("DELETE", &path, "").await.status, 404);
    assert_eq!(world.send("PATCH", &path, &with_customer(json!({ "priceId": 5 }))).await.status, 404);
}

#[tokio::test]
async fn the_free_subscription_takes_custom_variables_away() {
    let world = World::start().await;
    let free = world.send("POST", &format!("{ORG}/subscription-free"), "").await.expect(200);
    assert!(free["customerId"].is_u64() && free["subscriptionId"].is_u64());
    assert_eq!(product(&world).await["name"], "FREE");
    assert_eq!(world.get(ORG).await.expect(200)["organization"]["license"]["customVariables"], false);
    assert_eq!(world.send("POST", "/api/v2/organizations/999/subscription-free", "").await.status, 404);
}

#[tokio::test]
async fn a_coupon_shows_in_the_subscription() {
    let world = World::start().await;
    let apply = format!("{ORG}/subscription/coupon-apply");
    assert!(product(&world).await.get("coupon").is_none());
    assert_eq!(world.send("POST", &apply, &with_customer(json!({}))).await.status, 400);
    let applied = world.send("POST", &format!("{apply}?couponCode=SPRING"), &with_customer(json!({}))).await;
    assert_eq!(applied.expect(200), json!({ "ok": 1 }));
    assert_eq!(product(&world).await["coupon"]["productName"], "Teams");
    assert_eq!(world.send("POST", &format!("{apply}?couponCode=SPRING"), "{}").await.status, 400);
}

#[tokio::test]
async fn a_subscription_needs_a_price_that_there_is() {
    let world = World::start().await;
    let path = format!("{ORG}/subscription");
    let unknown = with_customer(json!({ "priceId": 77 }));
    assert_eq!(world.send("POST", &path, &unknown).await.expect(400)["code"], "SC400");
    assert_eq!(world.send("PATCH", &path, &unknown).await.status, 400);
    assert_eq!(world.send("POST", &path, r#"{"priceId": 3}"#).await.status, 400);
    assert_eq!(world.get("/api/v2/organizations/999/subscription").await.status, 404);
}
