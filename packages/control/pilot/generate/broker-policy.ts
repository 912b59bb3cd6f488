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
      .flatMap((component): BrokerComponent[] => {
        const { namespace, scopes } = component;
        const { told, secrets } = pubSubComponent(component, snapshot);
        const { name, type, secretNames = {} } = told;
        // A rule of access that stands in a Secret is enforced as well; while the Secret is missing, the Component gives no access.
        if (Object.entries(secretNames).some(([key, secret]) => accessMetadata.has(key) && !secrets.has(secret))) return [];
        const fromSecrets = Object.entries(secretNames).map(([key, secret]) => [key, Buffer.from(secrets.get(secret) ?? []).toString('utf8')] as const);
        const metadata = { ...told.metadata, ...Object.fromEntries(fromSecrets) };
        const topicPolicies = topicPoliciesOf(namespace, snapshot).filter(({ pubsub }) => pubsub === name);
        const access = Object.fromEntries(Object.entries(metadata).filter(([key]) => accessMetadata.has(key)));
        return [{ name, namespace, type, scopes, topicPolicies, metadata: access }];
      }),
    apps: apps.map(({ namespace, serviceAccount, appId }) => ({ namespace, serviceAccount, appId })),
  };
}
