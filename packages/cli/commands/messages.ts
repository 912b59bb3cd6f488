import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { PeerCertificate } from 'node:tls';
import { MizzenError, serverChainError, silentLogger } from '@mizzen/common';
import type { TopicStats } from '@mizzen/message/broker/broker';
import { EmbeddedDriver } from '@mizzen/message/brokers/embedded';
import { fullNameOf, splitFullName } from '@mizzen/message/policy/topic-names';
import { brokerIdentity } from '../broker-mesh.ts';
import { homeOf } from '../home.ts';
import { formatTable, print } from '../output.ts';

export interface MessagesOptions {
  readonly home?: string;
  readonly broker?: string;
  readonly from?: string;
  /** `NAMESPACE/NAME` */
  readonly component?: string;
}

/** The operator's commands talk to the mesh's broker alone: another workload on its port has a certificate of the mesh too. */
function brokerProblem(certificate: PeerCertificate, uri: string): Error | undefined {
  if (certificate.subjectaltname === `URI:${uri}`) return serverChainError(certificate);
  return serverChainError(certificate) ?? new Error(`the server is ${certificate.subjectaltname ?? 'without a name'}, not the mesh's broker`);
}

const connectMs = 5_000;

/** `mizzen messages topics` */
export async function topics(options: MessagesOptions): Promise<void> {
  const all = await allTopics(options);
  if (all.length === 0) return print('there are no topics yet');
  const rows = all.flatMap(({ topic, partitions, groups }) => {
    const stored = partitions.reduce((sum, { first, next }) => sum + next - first, 0);
    const bytes = partitions.reduce((sum, partition) => sum + partition.bytes, 0);
    const { space, topic: name } = splitFullName(topic);
    const own = [space || '-', name, String(partitions.length), String(stored), String(bytes)];
    return groups.length === 0 ? [[...own, '-', '-', '-']] : groups.map(({ group, lag, members }) => [...own, group, String(members), String(lag)]);
  });
  print(formatTable(['COMPONENT', 'TOPIC', 'PARTITIONS', 'MESSAGES', 'BYTES', 'GROUP', 'MEMBERS', 'LAG'], rows));
}

/** `mizzen messages replay` */
export async function replay(topic: string, group: string, options: MessagesOptions): Promise<void> {
  const { from = '0' } = options;
  const timestampMs = /^\d+$/.test(from) ? undefined : Date.parse(from);
  if (Number.isNaN(timestampMs))
    throw new MizzenError('invalid-option', `--from takes an offset or a time such as 2026-11-25T12:00:00Z, not ${JSON.stringify(from)}`);
  const fullName = await fullNameFor(topic, options);
  await ask(options, { what: 'replay', topic: fullName, group, ...(timestampMs === undefined ? { offset: Number(from) } : { timestampMs }) });
  print(`group ${group} begins topic ${topic} again from ${from}`);
}

/** `mizzen messages adopt` */
export async function adopt(topic: string, component: string, options: MessagesOptions): Promise<void> {
  await ask(options, { what: 'adopt', topic, component });
  print(`topic ${topic} belongs to the Component ${component}`);
}

const allTopics = async (options: MessagesOptions) => ((await ask(options, { what: 'stats' })) as { topics: TopicStats[] }).topics;

/** The full name of a topic that is named alone, where one Component has it. */
async function fullNameFor(topic: string, options: MessagesOptions): Promise<string> {
  if (options.component !== undefined) return fullNameOf(options.component, topic);
  const found = (await allTopics(options)).map((stats) => stats.topic).filter((fullName) => fullName === topic || splitFullName(fullName).topic === topic);
  if (found.length > 1)
    throw new MizzenError(
      'ambiguous-topic',
      `several Components have a topic ${topic}: name one with --component (${found.map((name) => splitFullName(name).space).join(', ')})`,
    );
  return found[0] ?? topic;
}

async function ask(options: MessagesOptions, question: object): Promise<unknown> {
  const home = homeOf(options.home);
  const file = join(home, 'broker.json');
  if (options.broker === undefined && !existsSync(file))
    throw new MizzenError('no-broker', 'no broker runs with this mesh: it is started when a Component of type pubsub.mizzen is there', home);
  const own = options.broker === undefined ? (JSON.parse(readFileSync(file, 'utf8')) as { readonly address: string; readonly config: string }) : undefined;
  const address = options.broker ?? own!.address;
  const identity = own === undefined ? undefined : await brokerIdentity(own.config, silentLogger);
  const cut = address.lastIndexOf(':');
  const driver = new EmbeddedDriver({
    host: address.slice(0, cut),
    port: Number(address.slice(cut + 1)),
    logger: silentLogger,
    ...(identity === undefined
      ? {}
      : {
          tls: () =>
            ({ ...identity.tls(), checkServerIdentity: (_host: string, certificate: PeerCertificate) => brokerProblem(certificate, identity.uri) }) as never,
        }),
  });
  try {
    const deadline = Date.now() + connectMs;
    while (driver.problem() !== undefined) {
      if (Date.now() > deadline) throw new MizzenError('broker-away', driver.problem()!);
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    return await driver.ask(question);
  } finally {
    await driver.close();
    identity?.close();
  }
}
