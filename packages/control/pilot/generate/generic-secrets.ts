import { create, toBinary } from '@bufbuild/protobuf';
import { ConsumerListSchema } from '@mizzen/envoy-api/gen/mizzen/http/v1/filters_pb.js';
import { apisOf } from '../apis/listener-filters.ts';
import type { ResolvedApi } from '../apis/resolved-api.ts';
import { consumerSecretNames, secretScheme } from '../apis/secret-names.ts';
import type { ProxyView } from '../proxy-view.ts';
import type { MeshSnapshot } from '../snapshot.ts';
import { messagingComponents } from './messaging.ts';
import { publicApis } from './public-listeners.ts';
import { mayRead } from './served-gateways.ts';

/**
 * The generic secrets of SDS (envoy.extensions.transport_sockets.tls.v3.GenericSecret) that a proxy is entitled to, by name. Filters and components name
 * them; no other resource holds their bytes. A proxy is entitled to a secret by what is proved of it (xds/proven-identity.ts):
 *
 * | name                                | content                                | proxies                                                                |
 * | ----------------------------------- | -------------------------------------- | ---------------------------------------------------------------------- |
 * | `mizzen://api/NS/NAME/USE`          | a value for a policy of the Api        | those that apply the Api's policies                                    |
 * | `mizzen://consumers/NS`             | all consumers of the namespace         | those that authenticate requests for an Api of the namespace           |
 * | `mizzen://consumers/NS/NAME`        | one consumer                           | those that may read NS, for an Api elsewhere that allows the consumer  |
 * | `mizzen://component/NS/NAME/FIELD`  | a value for the metadata of a Component | sidecars of NS whose app id is within the Component's scopes           |
 */
export class GenericSecrets {
  readonly #view: ProxyView;
  readonly #snapshot: MeshSnapshot;
  #apis: readonly ResolvedApi[] | undefined;

  constructor(view: ProxyView, snapshot: MeshSnapshot) {
    this.#view = view;
    this.#snapshot = snapshot;
    this.#apis = undefined;
  }

  /** undefined: there is no such secret, or the proxy is not entitled to it. */
  find(name: string): Uint8Array | undefined {
    if (!this.#view.isProven) return undefined;
    const [kind, namespace = '', object = ''] = name.slice(secretScheme.length).split('/');
    switch (kind) {
      case 'api':
        return this.#servedApis()
          .find(({ api }) => api.namespace === namespace && api.name === object)
          ?.secrets.get(name);
      case 'consumers':
        return this.#consumers(name, namespace, object);
      case 'component':
        return messagingComponents(this.#view, this.#snapshot)
          .find((component) => component.namespace === namespace && component.name === object)
          ?.secrets.get(name);
      default:
        return undefined;
    }
  }

  #servedApis(): readonly ResolvedApi[] {
    if (this.#apis === undefined) {
      const { edge, client } = apisOf(this.#view, this.#snapshot);
      this.#apis = [...edge, ...client, ...publicApis(this.#view, this.#snapshot).map(({ resolved }) => resolved)];
    }
    return this.#apis;
  }

  #consumers(name: string, namespace: string, consumer: string): Uint8Array | undefined {
    if (!this.#servedApis().some(({ api }) => consumerSecretNames(api).includes(name))) return undefined;
    // An Api of another namespace names the consumer; that is not for its author alone to decide.
    const isForeign = consumer !== '' && namespace !== this.#view.namespace;
    const isReadable = !isForeign || mayRead(this.#view, { group: 'mizzen.dev', kind: 'Consumer', namespace, name: consumer }, this.#snapshot);
    const prefix = `${namespace}/`;
    const isMeant = consumer === '' ? (known: string) => known.startsWith(prefix) : (known: string) => known === prefix + consumer;
    // A consumer that may not be read is unknown to the proxy, which then refuses its requests and no others.
    const consumers = isReadable ? (this.#snapshot.consumers.consumers ?? []).filter((one) => isMeant(one.name ?? '')) : [];
    return toBinary(ConsumerListSchema, create(ConsumerListSchema, { consumers }));
  }
}
