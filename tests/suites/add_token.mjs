// Loaded into a suite that cannot send a header: every request it makes, by either client of Node, carries the token.
import { subscribe } from "node:diagnostics_channel";

const token = `Bearer ${process.env.OPD_SUITE_TOKEN}`;
subscribe("undici:request:create", ({ request }) => request.addHeader("authorization", token));
subscribe("http.client.request.created", ({ request }) => request.setHeader("authorization", token));
