import type { Problem } from '../resource.ts';
import { invalid } from './checks.ts';

const headerName = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/;

/** Fields that decide where a message ends or where it goes (RFC 9110 section 7, RFC 9112 section 6). A claim must not choose them. */
const protocolFields = new Set(
  ['connection', 'content-length', 'expect', 'host', 'keep-alive', 'proxy-connection', 'te', 'trailer', 'transfer-encoding', 'upgrade'].map(comparable),
);

/** CGI and its like read `content_length` and `Content-Length` as one variable. */
function comparable(name: string): string {
  return name.toLowerCase().replace(/[^a-z0-9]/g, '-');
}

/** Why a header cannot be one that the proxy fills in with what a caller's credential says. */
export function ownedHeaderProblem(name: string, path: string): Problem | undefined {
  if (!headerName.test(name)) return invalid(path, `${JSON.stringify(name.slice(0, 80))} is not a header name (RFC 9110 section 5.1)`);
  return protocolFields.has(comparable(name)) ? invalid(path, `${name} belongs to HTTP itself: choose a header of your own, such as x-user`) : undefined;
}
