import { isIP } from 'node:net';
import { isUnixAddress, isUnixPath, parseDurationMs } from '@mizzen/common';
import type { Problem } from '../resource.ts';

/** Checks that several kinds share. Each returns the problem or nothing; `path` starts below the object, as in `spec.http[0].timeout`. */

const dnsName = /^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*\.?$/i;

export function invalid(path: string, message: string): Problem {
  return { code: 'invalid-value', path, message };
}

export function hostProblem(host: string, path: string, allowsWildcard = true): Problem | undefined {
  if (allowsWildcard && (host === '*' || (host.startsWith('*.') && dnsName.test(host.slice(2))))) return undefined;
  if (host.length <= 253 && (dnsName.test(host) || isIpAddress(host))) return undefined;
  return invalid(
    path,
    `${JSON.stringify(host.slice(0, 80))} is no host name${allowsWildcard ? ' (a wildcard may only be the whole first label, as in *.example.com)' : ''}`,
  );
}

export function isIpAddress(text: string): boolean {
  return isIP(text) !== 0 && !text.includes('%');
}

/** With underscores, which the names of containers have. */
const endpointName = /^[a-z0-9_]([-a-z0-9_.]*[a-z0-9_])?\.?$/i;

/** The address of an endpoint: an IP address or a host name. */
export function addressProblem(address: string, path: string): Problem | undefined {
  if (isIP(address) !== 0 || (address.length <= 253 && endpointName.test(address))) return undefined;
  const text = JSON.stringify(address.slice(0, 80));
  if (isUnixAddress(address) || isUnixPath(address))
    return invalid(path, `${text} is a Unix socket, which its own sidecar alone may use: name it in ingress.defaultEndpoint of a Sidecar`);
  return invalid(path, `${text} is neither an IP address nor a host name`);
}

/** An address, or a range of addresses such as 10.1.0.0/16. */
export function rangeProblem(value: string, path: string): Problem | undefined {
  const [address = '', length, more] = value.split('/');
  const most = isIP(address) === 6 ? 128 : 32;
  const isRange = isIpAddress(address) && more === undefined && (length === undefined || (/^\d{1,3}$/.test(length) && Number(length) <= most));
  if (!isRange) return invalid(path, `${JSON.stringify(value.slice(0, 80))} is not an address or a range of addresses (10.1.0.0/16)`);
  // Peers of IPv4 are known by their IPv4 addresses, on whatever socket they arrive.
  return /^(?:0*:)*:?ffff:/i.test(address) ? invalid(path, `${JSON.stringify(value)} matches no client: write the IPv4 address itself`) : undefined;
}

export function portProblem(port: unknown, path: string): Problem | undefined {
  return Number.isInteger(port) && (port as number) >= 1 && (port as number) <= 65535
    ? undefined
    : invalid(path, `${String(port)} is no port: ports are whole numbers from 1 to 65535`);
}

export function durationProblem(text: string | undefined, path: string, minimumMs = 1): Problem | undefined {
  if (text === undefined) return undefined;
  const ms = parseDurationMs(text);
  if (ms === undefined) return invalid(path, `${JSON.stringify(text)} is no duration: write a number with its unit, such as 7s, 250ms or 1m30s`);
  return ms < minimumMs ? invalid(path, `${text} is too short: at least ${minimumMs}ms`) : undefined;
}

export function percentProblem(value: number | undefined, path: string): Problem | undefined {
  return value === undefined || (value >= 0 && value <= 100) ? undefined : invalid(path, `${value} is no percentage: it must be between 0 and 100`);
}

/** Keeps the problems and drops the nothings. */
export function collect(...found: (Problem | undefined)[]): Problem[] {
  return found.filter((problem) => problem !== undefined);
}
