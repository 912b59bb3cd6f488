import type { FilterDefinition } from './define-filter.ts';
import { FilterHeaders } from './filter-headers.ts';
import type { FilterRequest, FilterResponse } from './messages.ts';
import { LocalAnswer } from './messages.ts';

/** Tries a filter without a proxy, by the same rules: what it changes and answers, phase by phase. */
export interface FilterTrial {
  readonly config?: unknown;
  readonly request?: {
    readonly method?: string;
    readonly path?: string;
    readonly authority?: string;
    readonly headers?: Readonly<Record<string, string>>;
    readonly remoteAddress?: string;
    readonly consumer?: FilterRequest['consumer'];
    readonly principal?: string;
  };
  /** The server's answer; 200 without headers when absent. */
  readonly response?: { readonly status?: number; readonly headers?: Readonly<Record<string, string>> };
}

export interface FilterOutcome {
  /** The filter's own answer; undefined: the request went on. */
  readonly answer: LocalAnswer | undefined;
  readonly request: FilterRequest;
  /** undefined where the filter has answered itself. */
  readonly response: FilterResponse | undefined;
}

export async function tryFilter<Config>(filter: FilterDefinition<Config>, trial: FilterTrial = {}): Promise<FilterOutcome> {
  const config = filter.config === undefined ? (trial.config as Config) : filter.config(trial.config);
  const { method = 'GET', path = '/', authority = 'example.test', headers = {}, remoteAddress = '127.0.0.1', consumer, principal = '' } = trial.request ?? {};
  const request: FilterRequest = { method, path, authority, headers: new FilterHeaders(Object.entries(headers)), remoteAddress, consumer, principal };
  const answer = await filter.onRequest?.(request, config);
  if (answer instanceof LocalAnswer) return { answer, request, response: undefined };
  const response: FilterResponse = { status: trial.response?.status ?? 200, headers: new FilterHeaders(Object.entries(trial.response?.headers ?? {})) };
  await filter.onResponse?.(response, request, config);
  return { answer: undefined, request, response };
}
