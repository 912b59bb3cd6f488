import { setTimeout as sleep } from 'node:timers/promises';
import { MizzenError } from '@mizzen/common';
import { type AuthorityStatus, bundlePath, type FederationStatus, type Revocation } from '@mizzen/control';
import { ApiClient } from '../api-client.ts';
import { controlAccess, homeOf } from '../home.ts';
import { formatTable, outputFormat, paint, print, printData } from '../output.ts';
import type { StatusOptions } from './status.ts';

type Answer = AuthorityStatus & { readonly trustBundle: string; readonly federation: readonly FederationStatus[]; readonly revoked: readonly Revocation[] };

const phases: Readonly<Record<AuthorityStatus['phase'], string>> = {
  steady: 'one root, no change under way',
  prepared: 'the next root is trusted, and signs nothing yet',
  switched: 'the next root signs; the one before is still trusted',
};

async function withApi<T>(options: StatusOptions, act: (api: ApiClient) => Promise<T>): Promise<T> {
  const api = new ApiClient(controlAccess(homeOf(options.home)));
  try {
    return await act(api);
  } finally {
    api.close();
  }
}

const ask = async (api: ApiClient) => (await api.call('GET', '/mizzen/v1/ca')).body as Answer;

/** `mizzen ca status`: the roots of the mesh, and where a change of them stands. */
export async function status(options: StatusOptions): Promise<void> {
  await withApi(options, async (api) => {
    const { trustBundle: _bundle, ...answer } = await ask(api);
    const format = outputFormat(options.output);
    if (format !== 'table') return printData(answer, format);
    print(`trust domain ${answer.trustDomain}, ${answer.phase}: ${phases[answer.phase]}\n`);
    print(
      formatTable(
        ['ROOT', 'SIGNS', 'UNTIL', 'SHA-256', 'SUBJECT'],
        answer.roots.map((root) => [
          root.generation,
          root.signs ? paint('yes', 'green') : 'no',
          root.notAfter.slice(0, 10),
          root.fingerprint.slice(0, 16),
          root.subject,
        ]),
      ),
    );
    if (answer.federation.length > 0)
      print(
        `\n${formatTable(
          ['TRUST DOMAIN', 'BUNDLE FROM', 'FETCHED', 'PROBLEM'],
          answer.federation.map(({ trustDomain, url, fetchedAt, problem }) => [trustDomain, url, fetchedAt ?? 'never', problem ? paint(problem, 'red') : '']),
        )}`,
      );
    if (answer.revoked.length > 0) print(`\n${revokedTable(answer.revoked)}`);
    if (answer.phase === 'steady') return;
    print(
      `\nnext step: ${answer.nextStep}${answer.waitsFor.length > 0 ? `, when these proxies are ready: ${answer.waitsFor.join(', ')}` : ' (all proxies are ready)'}`,
    );
  });
}

export interface RotateOptions extends StatusOptions {
  readonly step?: string;
  readonly force?: boolean;
  readonly timeout: string;
}

const pollMs = 250;

/** `mizzen ca rotate`: a change of roots in three steps, each when all proxies are ready for it; with --step a single one. */
export async function rotate(options: RotateOptions): Promise<void> {
  const seconds = Number(options.timeout);
  if (!Number.isFinite(seconds) || seconds <= 0) throw new MizzenError('bad-option', `--timeout ${options.timeout}: a number of seconds is needed`);
  await withApi(options, async (api) => {
    const take = async (step: string) => {
      await api.call('POST', '/mizzen/v1/ca/rotate', { body: { step, force: options.force === true } });
      print(`${step}: ${phases[(await ask(api)).phase]}`);
    };
    if (options.step !== undefined) return take(options.step);
    let answer = await ask(api);
    do {
      const deadline = Date.now() + seconds * 1000;
      let told = -1;
      while (answer.waitsFor.length > 0 && !options.force) {
        if (Date.now() > deadline)
          throw new MizzenError(
            'not-ready',
            `these proxies are not ready for the step ${answer.nextStep}: ${answer.waitsFor.join(', ')}. Nothing is lost: call this again, or with --force to leave them behind.`,
          );
        if (told !== answer.waitsFor.length)
          print(`waiting for ${(told = answer.waitsFor.length)} ${told === 1 ? 'proxy' : 'proxies'} before ${answer.nextStep}...`);
        await sleep(pollMs);
        answer = await ask(api);
      }
      await take(answer.nextStep);
      answer = await ask(api);
    } while (answer.phase !== 'steady');
  });
}

/** `mizzen ca revoke SERIAL`, or `--identity SPIFFE-ID`: certificates that nobody takes any more. */
export async function revoke(serial: string | undefined, options: StatusOptions & { readonly identity?: string }): Promise<void> {
  if ((serial === undefined) === (options.identity === undefined)) throw new MizzenError('bad-option', 'a serial number or --identity is needed, and not both');
  await withApi(options, async (api) => {
    const body = serial === undefined ? { identity: options.identity } : { serial };
    const { revoked } = (await api.call('POST', '/mizzen/v1/ca/revoke', { body })).body as { readonly revoked: readonly Revocation[] };
    print(revoked.length === 0 ? 'nothing to do: they are revoked or have ended already' : revokedTable(revoked));
  });
}

function revokedTable(revoked: readonly Revocation[]): string {
  return formatTable(
    ['REVOKED', 'IDENTITY', 'AT', 'WOULD HAVE ENDED'],
    revoked.map(({ serial, identity, revokedAt, notAfter }) => [serial, identity, revokedAt.slice(0, 19), notAfter.slice(0, 19)]),
  );
}

/** `mizzen ca export`: what others need to trust this mesh, as PEM or as a SPIFFE bundle (SPIFFE Trust Domain and Bundle, section 4). */
export async function exportBundle(options: StatusOptions & { readonly format: string }): Promise<void> {
  if (options.format !== 'pem' && options.format !== 'spiffe') throw new MizzenError('bad-option', `--format ${options.format} is not known: pem or spiffe`);
  await withApi(options, async (api) => {
    if (options.format === 'pem') return print((await ask(api)).trustBundle);
    print(JSON.stringify((await api.call('GET', bundlePath)).body, null, 2));
  });
}
