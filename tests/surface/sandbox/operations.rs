//! Organizations, apps, invitations, usage, feature controls; and what every operation shares.

use serde_json::{Value, json};

use super::{LIST, ORG, World};

const NEW: &str = r#"{"name": "New organization I", "regionId": 1, "timezoneId": 113, "countryId": 1}"#;

fn names(list: &Value) -> Vec<&str> {
    list["organizations"].as_array().unwrap().iter().map(|org| org["name"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn list_has_default_columns_and_echoes_its_page() {
    let list = World::start().await.get(LIST).await.expect(200);
    assert_eq!(
        list["organizations"][0],
        json!({ "id": 11, "name": "Acme Operations", "timezoneId": 113, "zone": "eu1.make.com" })
    );
    let echo = json!({ "sortBy": "name", "limit": 10000, "sortDir": "asc", "offset": 0, "returnTotalCount": false });
    assert_eq!(list["pg"], echo);
}

#[tokio::test]
async fn list_is_sorted_paged_and_narrowed_to_columns() {
    let world = World::start().await;
    let target =
        format!("{LIST}?cols%5B%5D=name&pg%5BsortBy%5D=id&pg%5BsortDir%5D=desc&pg%5Blimit%5D=2&pg%5Boffset%5D=1");
    let list = world.get(&target).await.expect(200);
    assert_eq!(list["organizations"], json!([{ "name": "Dune Labs" }, { "name": "Cobalt Logistics" }]));
    let all = world.get(&format!("{LIST}?cols[]=*")).await.expect(200);
    assert_eq!(all["organizations"][0]["license"]["transfer"], json!(1_099_511_627_776_u64));
    assert_eq!(all["organizations"][0]["externalId"], Value::Null);
    // The licence of another zone's organization is not shown here.
    assert_eq!(all["organizations"][4]["zone"], "us1.make.com");
    assert!(all["organizations"][4].get("license").is_none());
    let bare = world.get(&format!("{LIST}?cols=id&cols=productName")).await.expect(200);
    assert_eq!(bare["organizations"][1], json!({ "id": 12, "productName": "Pro" }));
}

#[tokio::test]
async fn list_refuses_a_page_that_is_none() {
    let refused = World::start().await.get(&format!("{LIST}?pg[limit]=many")).await.expect(400);
    assert_eq!(refused["code"], "SC400");
    assert_eq!(refused["suberrors"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_created_organization_lives_until_it_is_deleted() {
    let world = World::start().await;
    let created = world.send("POST", LIST, NEW).await.expect(200);
    let id = created["organization"]["id"].as_u64().unwrap();
    assert_eq!(created["userOrganizationRole"]["organizationId"], id);
    assert_eq!(created["organization"]["teams"][0]["name"], "My Team");
    assert!(names(&world.get(LIST).await.expect(200)).contains(&"New organization I"));

    let own = format!("{LIST}/{id}");
    let updated = world.send("PATCH", &own, r#"{"name": "Renamed"}"#).await.expect(200);
    assert_eq!(updated["organization"]["license"]["apps"], "T2,T3");
    let detail = world.get(&own).await.expect(200);
    assert_eq!(detail["organization"]["name"], "Renamed");
    assert_eq!(detail["organization"]["timezoneId"], 113, "what the body leaves out stays");

    assert_eq!(world.send("DELETE", &own, "").await.expect(200), json!({ "organization": id }));
    assert_eq!(world.send("DELETE", &own, "").await.status, 404);
    assert_eq!(world.get(&own).await.status, 404);
    assert_eq!(names(&world.get(LIST).await.expect(200)).len(), 5);
    assert_eq!(world.sandbox.effects("DELETE", &own), 1);
}

#[tokio::test]
async fn create_names_every_wrong_field() {
    let world = World::start().await;
    let refused = world.send("POST", LIST, r#"{"name": "", "regionId": "1"}"#).await.expect(400);
    assert_eq!((&refused["code"], refused["suberrors"].as_array().unwrap().len()), (&json!("SC400"), 4));
    assert_eq!(world.send("POST", LIST, "[]").await.status, 400);
    assert_eq!(world.send("POST", LIST, "{").await.status, 400);
    assert_eq!(world.send("POST", LIST, "").await.status, 400);
    assert_eq!(world.sandbox.effects("*", "/**"), 0);
}

#[tokio::test]
async fn detail_has_counters_as_text_and_a_licence_with_large_numbers() {
    let world = World::start().await;
    let detail = world.get(ORG).await.expect(200);
    let organization = &detail["organization"];
    assert!(organization["operations"].is_string());
    assert_eq!(organization["license"]["fslimit"], json!(2_147_483_648_u64));
    assert_eq!(organization["license"]["apiLimit"], 240);
    assert_eq!(organization["license"]["customVariables"], true);
    assert_eq!(world.sandbox.organization(11).as_ref(), Some(organization));
    let missing = world.get("/api/v2/organizations/999").await.expect(404);
    assert!(["detail", "message", "code"].iter().all(|field| missing[field].is_string()), "{missing}");
}

#[tokio::test]
async fn update_refuses_wrong_types_and_changes_nothing() {
    let world = World::start().await;
    let refused = world.send("PATCH", ORG, r#"{"name": "Half", "countryId": "1"}"#).await;
    assert_eq!(refused.status, 400);
    assert_eq!(world.sandbox.organization(11).unwrap()["name"], "Acme Operations");
    assert_eq!(world.send("PATCH", "/api/v2/organizations/999", "{}").await.status, 404);
}

#[tokio::test]
async fn delete_of_an_organization_with_active_scenarios_must_be_confirmed() {
    let world = World::start().await;
    let busy = "/api/v2/organizations/13";
    assert_eq!(world.send("DELETE", busy, "").await.expect(406)["code"], "IM004");
    assert_eq!(world.send("DELETE", &format!("{busy}?confirmed=true"), "").await.status, 200);
    let elsewhere = world.send("DELETE", "/api/v2/organizations/15?confirmed=true", "").await;
    assert_eq!(elsewhere.expect(403)["code"], "IM002");
}

#[tokio::test]
async fn apps_are_listed() {
    let world = World::start().await;
    let apps = world.get(&format!("{ORG}/apps")).await.expect(200);
    assert_eq!(apps["installedApps"][0]["organizationId"], 11);
    assert_eq!(world.get("/api/v2/organizations/999/apps").await.status, 404);
}

#[tokio::test]
async fn an_invitation_is_sent_read_and_accepted_once() {
    let world = World::start().await;
    let body = r#"{"usersRoleId": 12, "email": "tom@example.com", "name": "Tom", "note": "Hi", "teamsId": [110, 26]}"#;
    let invited = world.send("POST", &format!("{ORG}/invite"), body).await.expect(200);
    assert_eq!(invited["userOrganizationRole"]["joinedTeamsCount"], 1);
    let hash = world.sandbox.invitation("tom@example.com").unwrap();
    assert!(!invited.to_string().contains(&hash), "the hash goes out by e-mail only");

    let read = format!("{LIST}/invitation?hash={hash}");
    let shown = world.get(&read).await.expect(200);
    assert_eq!(shown["organization"], json!({ "id": 11, "name": "Acme Operations" }));
    assert_eq!(shown["userOrganizationRole"]["invitation"], "pending");

    let (accept, body) = (format!("{LIST}/accept-invitation"), json!({ "hash": hash }).to_string());
    let accepted = world.send("POST", &accept, &body).await.expect(200);
    assert_eq!(accepted["userOrganizationRole"]["invitation"], Value::Null);
    assert_eq!(world.send("POST", &accept, &body).await.status, 404);
    assert_eq!(world.get(&read).await.status, 404);
}

#[tokio::test]
async fn invitations_refuse_what_is_missing_or_wrong() {
    let world = World::start().await;
    let wrong = r#"{"usersRoleId": 12, "email": "tom", "name": "Tom", "teamsId": ["a"]}"#;
    let refused = world.send("POST", &format!("{ORG}/invite"), wrong).await.expect(400);
    assert_eq!(refused["suberrors"].as_array().unwrap().len(), 2);
    assert_eq!(world.get(&format!("{LIST}/invitation")).await.status, 400);
    assert_eq!(world.send("POST", &format!("{LIST}/accept-invitation"), "{}").await.status, 400);
    // The document's own example is pending from the start.
    let seeded = world.get(&format!("{LIST}/invitation?hash=bf1effe1-bc9d-4ab3-9414-9c3b66175305")).await;
    assert_eq!(seeded.expect(200)["organization"]["id"], 13);
}

#[tokio::test]
async fn usage_has_thirty_days_in_the_timezone_asked_for() {
    let world = World::start().await;
    world.send("PATCH", ORG, r#"{"timezoneId": 24}"#).await.expect(200);
    let own = world.get(&format!("{ORG}/usage?organizationTimezone=true")).await.expect(200);
    let user = world.get(&format!("{ORG}/usage")).await.expect(200);
    for usage in [&own, &user] {
        let days: Vec<&str> = usage["data"].as_array().unwrap().iter().map(|d| d["date"].as_str().unwrap()).collect();
        assert_eq!(days.len(), 30);
        assert!(days.is_sorted());
    }
    assert_ne!(own, user);
    assert_eq!(world.get("/api/v2/organizations/999/usage").await.status, 404);
}

#[tokio::test]
async fn feature_controls_are_filtered_and_switched() {
    let world = World::start().await;
    let path = format!("{ORG}/feature-controls");
    let all = world.get(&path).await.expect(200);
    let ids: Vec<u64> = all["featureControls"].as_array().unwrap().iter().map(|c| c["id"].as_u64().unwrap()).collect();
    assert_eq!(ids, [2, 1]);
    let one = world.get(&format!("{path}?featureControlName=Make+AI%20Tools&cols[]=id&cols[]=enabled")).await;
    assert_eq!(one.expect(200)["featureControls"], json!([{ "id": 2, "enabled": true }]));

    let switched = world.send("PATCH", &path, r#"{"id": 1, "enabled": true}"#).await.expect(200);
    assert_eq!(switched, json!({ "featureControl": { "id": 1, "enabled": true } }));
    assert_eq!(world.get(&path).await.expect(200)["featureControls"][1]["enabled"], true);
    assert_eq!(world.sandbox.organization(11).unwrap()["featureControls"][0]["enabled"], true);
    assert_eq!(world.send("PATCH", &path, r#"{"id": 1}"#).await.status, 400);
    assert_eq!(world.send("PATCH", &path, r#"{"id": 9, "enabled": true}"#).await.status, 404);
}

#[tokio::test]
async fn both_schemes_are_taken_and_nothing_else() {
    let world = World::start().await;
    for (header, status) in [
        ("authorization: Token sandbox-token\r\n", "200"),
        ("authorization: Bearer sandbox-token\r\n", "200"),
        ("authorization: sandbox-token\r\n", "401"),
        ("authorization: Token other\r\n", "401"),
        ("authorization: Token sandbox-token\r\nauthorization: Token sandbox-token\r\n", "401"),
        ("", "401"),
    ] {
        let answer = world.raw("GET", LIST, header, "").await.unwrap();
        assert_eq!(&answer[9..12], status.as_bytes(), "{header}");
        if status == "401" {
            assert!(answer.ends_with(br#"{"message":"User is not logged in.","code":"IM015"}"#));
        }
    }
    let kept = serde_json::to_string(&world.sandbox.received()).unwrap();
    assert!(!kept.contains("sandbox-token"), "{kept}");
}

#[tokio::test]
async fn other_paths_and_methods_are_not_found() {
    let world = World::start().await;
    for (method, path) in [
        ("GET", "/api/v2/organizations/"),
        ("GET", "/api/v2/organizations/11/"),
        ("GET", "/api/v2/organizations/eleven"),
        ("PUT", "/api/v2/organizations/11"),
        ("POST", "/api/v2/organizations/11/usage"),
        ("GET", "/api/v2/teams"),
        ("GET", "/"),
    ] {
        assert_eq!(world.send(method, path, "").await.status, 404, "{method} {path}");
    }
    assert_eq!(world.send("HEAD", ORG, "").await.status, 200);
}

#[tokio::test]
async fn a_body_beyond_what_make_takes_is_refused_in_its_words() {
    let world = World::start().await;
    let refused = world.send("PATCH", ORG, &"x".repeat(2_100_001)).await.expect(413);
    assert_eq!(refused, json!({ "detail": "request entity too large" }));
    let within = format!(r#"{{"name": "Long", "note": "{}"}}"#, "x".repeat(2_000_000));
    assert_eq!(world.send("PATCH", ORG, &within).await.status, 200);
}
