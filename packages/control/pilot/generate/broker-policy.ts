import { type BrokerComponent, type BrokerPolicy, brokerAccount } from '@mizzen/envoy-api';
import type { ProxyView } from '../proxy-view.ts';
import type { MeshSnapshot } from '../snapshot.ts';
import { pubSubComponent, topicPoliciesOf } from './messaging.ts';

/** What of a Component decides about access; its other metadata may hold secrets. */
const accessMetadata: ReadonlySet<string> = new Set(['publishingScopes', 'subscriptionScopes', 'allowedTopics', 'protectedTopics']);

/** What the mesh's own broker enforces as a server: for all namespaces, and for the broker's proven account alone; undefined: the proxy is not the broker. */
export function brokerPolicyFor(view: ProxyView, snapshot: MeshSnapshot): BrokerPolicy | undefined {
  if (!view.isProven || view.namespace !== brokerAccount.namespace || view.serviceAccount !== brokerAccount.serviceAccount) return undefined;
  const { components, apps } = snapshot.messaging;
  return {
    components: components
      .filter(({ spec }) => spec.type === 'pubsub.mizzen')
      .map((component): BrokerComponent => {
        const { namespace, scopes } = component;
        const { name, type, metadata } = pubSubComponent(component, snapshot);
        const topicPolicies = topicPoliciesOf(namespace, snapshot).filter(({ pubsub }) => pubsub === name);
        return {
          ...{ name, namespace, type, scopes, topicPolicies },
          metadata: Object.fromEntries(Object.entries(metadata).filter(([key]) => accessMetadata.has(key))),
        };
      }),
    apps: apps.map(({ namespace, serviceAccount, appId }) => ({ namespace, serviceAccount, appId })),
  };
}
