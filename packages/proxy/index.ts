/** The data plane: a sidecar or gateway that takes everything it knows from xDS. */
export { type StartedProxy, startProxy } from './proxy.ts';
export { checkProxyConfig, type ProxyConfig } from './proxy-config.ts';
