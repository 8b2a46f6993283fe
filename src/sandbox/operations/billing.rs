//! Payments and the subscription. What they buy becomes visible in the plan's license, in extra operations and in later
//! reads.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::{MakeError, MakeState, OperationCall, View, ok, stamp};
use crate::sandbox::fields::BodyFields;
use crate::sandbox::seed::SeedPlan;
use crate::sandbox::state::Subscription;

/// What one unit of a single payment buys.
const EXTRA_OPERATIONS: u64 = 10_000;
const EXTRA_PRICE: u64 = 9;
/// Maximum number of units per payment.
const QUANTITY_MAX: u64 = 10_000;

const SORTABLE: [&str; 5] = ["id", "created", "invoice_number", "amount_total", "status_name"];

/// `GET /organizations/{organizationId}/payments`, newest first.
pub(super) fn payments(state: &MakeState, call: &OperationCall, id: u64) -> Result<Value, MakeError> {
    let organization = state.organization(id, call.view())?;
    let page = call.query.page("created", true, &SORTABLE)?;
    let newest_first = organization.payments.iter().rev().map(|payment| Value::clone(payment)).collect();
    Ok(json!({ "payments": page.cut(newest_first) }))
}

/// `POST /organizations/{organizationId}/single-payment-create`
pub(super) fn pay(state: &mut MakeState, call: &OperationCall, id: u64) -> Result<Value, MakeError> {
    state.organization(id, View::Current)?;
    let mut fields = call.fields()?;
    let (price, quantity) = (fields.number("priceId"), fields.number("quantity"));
    if quantity.is_some_and(|quantity| !(1..=QUANTITY_MAX).contains(&quantity)) {
        fields.wrong("quantity", "an integer from 1 to 10000");
    }
    check_payment(&mut fields);
    let (_, quantity) = fields.all(price.zip(quantity))?;
    let number = state.next_id();
    state.change(id, call.now, |org| {
        let amount = format!("{}.00", EXTRA_PRICE * quantity);
        org.operations_extra += EXTRA_OPERATIONS * quantity;
        let plan = org.plan();
        org.pay(invoice(call, number, &amount, plan));
        Ok(ok())
    })
}

/// `GET /organizations/{organizationId}/subscription`
pub(super) fn subscription(state: &MakeState, call: &OperationCall, id: u64) -> Result<Value, MakeError> {
    let organization = state.organization(id, call.view())?;
    let subscription = organization.subscription.as_ref().ok_or_else(no_subscription)?;
    let mut product = json!({
        "id": subscription.plan.price_id(),
        "name": subscription.plan.name(),
        "nextBill": stamp(later(call.wall, 30)),
        "price": {
            "id": subscription.plan.price_id(),
            "price": subscription.plan.price(),
            "currencyCode": "USD",
            "period": "1 month",
        },
    });
    if let (Some(since), Some(product)) = (subscription.coupon_since_ms, product.as_object_mut()) {
        product.insert("coupon".to_owned(), coupon(subscription.plan, since));
    }
    Ok(json!({ "product": product }))
}

/// `POST /organizations/{organizationId}/subscription`: replaces the current subscription.
pub(super) fn subscribe(state: &mut MakeState, call: &OperationCall, id: u64) -> Result<Value, MakeError> {
    state.organization(id, View::Current)?;
    let mut fields = call.fields()?;
    let plan = read_plan(&mut fields);
    let coupon = fields.optional_text("couponCode").is_some();
    check_payment(&mut fields);
    let plan = fields.all(plan)?;
    let (session, new, number) = (state.next_id(), state.next_id(), state.next_id());
    state.change(id, call.now, |org| {
        let coupon_since_ms = coupon.then(|| call.wall.as_millisecond());
        org.subscription = Some(Subscription { coupon_since_ms, ..Subscription::new(plan) });
        org.pay(invoice(call, number, plan.price(), plan));
        let url = format!("https://checkout.example.com/sessions/{session}");
        Ok(json!({ "sessionId": session, "url": url, "subscriptionId": new }))
    })
}

/// `PATCH /organizations/{organizationId}/subscription`
pub(super) fn change(state: &mut MakeState, call: &OperationCall, id: u64) -> Result<Value, MakeError> {
    state.organization(id, View::Current)?;
    let mut fields = call.fields()?;
    let plan = read_plan(&mut fields);
    fields.customer();
    let plan = fields.all(plan)?;
    state.change(id, call.now, |org| {
        org.subscription.as_mut().ok_or_else(no_subscription)?.plan = plan;
        Ok(ok())
    })
}

/// `DELETE /organizations/{organizationId}/subscription`; a second one finds none.
pub(super) fn cancel(state: &mut MakeState, call: &OperationCall, id: u64) -> Result<Value, MakeError> {
    state.change(id, call.now, |org| org.subscription.take().map(|_| ok()).ok_or_else(no_subscription))
}

/// `POST /organizations/{organizationId}/subscription-free`, without a body.
pub(super) fn subscribe_free(state: &mut MakeState, call: &OperationCall, id: u64) -> Result<Value, MakeError> {
    let (customer, new) = (state.next_id(), state.next_id());
    state.change(id, call.now, |org| {
        org.subscription = Some(Subscription::new(SeedPlan::Free));
        Ok(json!({ "customerId": customer, "subscriptionId": new }))
    })
}

/// `POST /organizations/{organizationId}/subscription/coupon-apply?couponCode=…`
pub(super) fn apply_coupon(state: &mut MakeState, call: &OperationCall, id: u64) -> Result<Value, MakeError> {
    state.organization(id, View::Current)?;
    if call.query.get("couponCode").is_none_or(str::is_empty) {
        return Err(MakeError::invalid("Missing value of required parameter 'couponCode'."));
    }
    let mut fields = call.fields()?;
    fields.customer();
    fields.done()?;
    state.change(id, call.now, |org| {
        let since = call.wall.as_millisecond();
        org.subscription.as_mut().ok_or_else(no_subscription)?.coupon_since_ms = Some(since);
        Ok(ok())
    })
}

fn no_subscription() -> MakeError {
    MakeError::not_found("A subscription of this organization")
}

/// The fields that a payment and a new subscription share.
fn check_payment(fields: &mut BodyFields<'_>) {
    fields.optional_text("couponCode");
    fields.optional_flag("doNotCharge");
    fields.customer();
}

fn read_plan(fields: &mut BodyFields<'_>) -> Option<SeedPlan> {
    let price = fields.number("priceId")?;
    let plan = SeedPlan::of_price(price);
    if plan.is_none() {
        fields.wrong("priceId", "1 (FREE), 2 (Core), 3 (Pro), 4 (Teams) or 5 (Enterprise)");
    }
    plan
}

fn coupon(plan: SeedPlan, since_ms: i64) -> Value {
    let from = Timestamp::from_millisecond(since_ms).unwrap_or(Timestamp::UNIX_EPOCH);
    json!({
        "validFrom": stamp(from),
        "validTo": stamp(later(from, 7)),
        "price": "3.00",
        "currencyCode": "usd",
        "productId": plan.price_id(),
        "productName": plan.name(),
    })
}

/// One entry of the payments, with links that carry a signature, as Make's do.
fn invoice(call: &OperationCall, number: u64, amount: &str, plan: SeedPlan) -> Value {
    let invoice = format!("6B52691A-{number:04}");
    json!({
        "id": format!("in_{number:024}"),
        "invoice_number": invoice,
        "created": stamp(call.wall),
        "type_name": "Invoice",
        "status_name": "Pending",
        "product_name": { "cs": plan.name(), "en": plan.name() },
        "payment_method": {
            "type": "card",
            "card": {
                "brand": "visa",
                "last4": "4242",
                "country": "US",
                "network": "visa",
                "exp_year": 2029,
                "exp_month": 4,
                "fingerprint": "pxynXFWHTejV4FMT",
            },
        },
        "amount_total": amount,
        "currency_code": "usd",
        "invoice_url": format!("https://invoices.example.com/{invoice}.pdf?X-Amz-Expires=600&X-Amz-Signature=8f16f7"),
        "hosted_invoice_url": format!("https://invoice.example.com/i/acct_1J0L/test_{number}"),
        "period_from": stamp(call.wall),
        "period_to": stamp(later(call.wall, 30)),
    })
}

fn later(time: Timestamp, days: i64) -> Timestamp {
    time.checked_add(SignedDuration::from_hours(24 * days)).unwrap_or(time)
}
