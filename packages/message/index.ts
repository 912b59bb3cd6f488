/** The message mesh: a sidecar's local API, the drivers of brokers, and the embedded broker. */
export { startMessaging } from './message-plane.ts';
