/**
 * The xDS contract: type URLs, and packing of Envoy's generated messages. The messages themselves are imported one by one from
 * `@mizzen/envoy-api/gen/...`, since loading all 400 files would cost every process what it does not use.
 */
export { type Init, packAny, typeUrlOf, unpackAny } from './any.ts';
export { durationFromMs, durationToMs, durationToTimerMs } from './durations.ts';
export {
  type BrokerApp,
  type BrokerComponent,
  type BrokerPolicy,
  brokerAccount,
  type CanaryRoute,
  type MessagingConfig,
  noMessaging,
  type PubSubComponent,
  type ResiliencyPolicy,
  type Subscription,
  type TopicPolicy,
  type TopicRule,
} from './messaging-config.ts';
export { currentFeatures, secretRemovalFeature } from './proxy-features.ts';
export { type DiscoveryType, discoveryTypes, type ResourceType, resourceTypes, typeUrls } from './resource-types.ts';
