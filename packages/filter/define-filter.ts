import type { FilterRequest, FilterResponse, LocalAnswer } from './messages.ts';

/** A filter: what it is called, how its configuration is read, and the phases that it takes part in. */
export interface FilterDefinition<Config> {
  readonly name: string;
  /**
   * Reads what the resource says under `config`, once. Throw an Error that says what is wrong with it: requests are answered with 500 until it
   * is right. Absent: the configuration is taken as it is.
   */
  config?(raw: unknown): Config;
  /** Sees a request before it is sent on. Returns an answer of its own (`respond`), or nothing. */
  onRequest?(request: FilterRequest, config: Config): LocalAnswer | undefined | Promise<LocalAnswer | undefined>;
  /** Sees the server's answer before its head is sent to the client. */
  onResponse?(response: FilterResponse, request: FilterRequest, config: Config): unknown;
}

/**
 * Defines a filter; the file that holds it exports it as default.
 *
 * @example
 * export default defineFilter({
 *   name: 'tenant',
 *   config: (raw) => raw as { readonly header: string },
 *   onRequest(request, config) {
 *     if (!request.headers.has(config.header)) return respond(400, { title: 'which tenant?' });
 *   },
 * });
 */
export function defineFilter<Config = unknown>(definition: FilterDefinition<Config>): FilterDefinition<Config> {
  return definition;
}
