import type { FilterHeaders } from './filter-headers.ts';

/** A request's head, as a filter sees it. Only `path` and `headers` may be changed. */
export interface FilterRequest {
  readonly method: string;
  /** Path and query. */
  path: string;
  /** The host that the client called. */
  readonly authority: string;
  readonly headers: FilterHeaders;
  /** Where it came from. */
  readonly remoteAddress: string;
  /** Who calls, as an API's credential has proved. */
  readonly consumer: { readonly name: string; readonly groups: readonly string[]; readonly claims: Readonly<Record<string, unknown>> } | undefined;
  /** The SPIFFE identity of a caller within the mesh; '' for others. */
  readonly principal: string;
}

/** An answer's head. `status` and `headers` may be changed. */
export interface FilterResponse {
  status: number;
  readonly headers: FilterHeaders;
}

/** An answer that a filter gives itself. Made by `respond`. */
export class LocalAnswer {
  readonly status: number;
  readonly body: string;
  readonly headers: Readonly<Record<string, string>>;

  constructor(status: number, body: string, headers: Readonly<Record<string, string>>) {
    this.status = status;
    this.body = body;
    this.headers = headers;
  }
}

/** Answers the request from the filter: `return respond(403, 'not today')`. An object is sent as JSON. */
export function respond(status: number, body: string | object = '', headers: Readonly<Record<string, string>> = {}): LocalAnswer {
  if (!Number.isInteger(status) || status < 200 || status > 599) throw new RangeError(`${status} cannot be the status of an answer`);
  if (typeof body === 'string') return new LocalAnswer(status, body, headers);
  return new LocalAnswer(status, JSON.stringify(body), { 'content-type': 'application/json', ...headers });
}
