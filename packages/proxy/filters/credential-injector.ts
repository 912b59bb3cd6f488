import { CredentialPerRouteSchema } from '@mizzen/envoy-api/gen/mizzen/http/v1/filters_pb.js';
import type { ProxyContext } from '../http/connection-settings.ts';
import { utf8Bytes } from '../message/header-bytes.ts';
import type { FilterKind, SecretsInQuery } from './filter.ts';
import { type NeedsSecrets, refuseWithoutSecret, secretNameOf } from './generic-secrets.ts';
import { unpackConfig } from './unpack-config.ts';

const name = 'mizzen.filters.http.credential_injector';

class RouteCredential implements SecretsInQuery, NeedsSecrets {
  readonly header: string;
  readonly queryParameter: string;
  readonly secretNames: readonly string[];
  readonly secretParameters: readonly string[];
  readonly #secretName: string;
  #secret: Buffer | undefined;
  #value: string;

  constructor(header: string, queryParameter: string, secretName: string) {
    this.header = header;
    this.queryParameter = queryParameter;
    this.secretNames = [secretName];
    this.secretParameters = queryParameter === '' ? [] : [queryParameter];
    this.#secretName = secretName;
    this.#secret = undefined;
    this.#value = '';
  }

  /** undefined: it has not arrived. */
  value(secretOf: ProxyContext['genericSecret']): string | undefined {
    const secret = secretOf(this.#secretName);
    if (secret === undefined) return undefined;
    if (secret !== this.#secret) {
      this.#secret = secret;
      this.#value = secret.toString('utf8');
    }
    return this.#value;
  }
}

/**
 * mizzen.filters.http.credential_injector: gives the calls of a workload the credential of somebody else's API, so that the application never
 * holds it. What the application itself sends in its place is replaced.
 */
export const credentialInjector: FilterKind = {
  name,
  create: () => ({
    name,
    onRequest(exchange) {
      const config = exchange.filterConfig(name) as RouteCredential | undefined;
      if (config === undefined) return 'continue';
      const value = config.value(exchange.settings.context.genericSecret);
      if (value === undefined) return refuseWithoutSecret(exchange, 'credential_injector');
      if (config.header !== '') exchange.head.headers.set(config.header, utf8Bytes(value));
      else {
        const { target } = exchange.head;
        const cut = target.indexOf('?');
        const parameter = encodeURIComponent(config.queryParameter);
        const others =
          cut < 0
            ? []
            : target
                .slice(cut + 1)
                .split('&')
                .filter((part) => part !== '' && part.split('=', 1)[0] !== parameter);
        exchange.retarget(`${cut < 0 ? target : target.slice(0, cut)}?${[...others, `${parameter}=${encodeURIComponent(value)}`].join('&')}`);
      }
      return 'continue';
    },
  }),
  compileRoute: (any, place) => {
    const { header, queryParameter, value } = unpackConfig(CredentialPerRouteSchema, any, place);
    return new RouteCredential(header.toLowerCase(), queryParameter, secretNameOf(value, 'value', place));
  },
};
