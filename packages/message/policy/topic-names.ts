import { MizzenError } from '@mizzen/common';

/** What an application calls a topic. */
export const topicPattern = /^[\w.:/@-]{1,200}$/;
/** Namespace and name of a Component. */
const spacePattern = /^[a-z0-9](?:[a-z0-9.-]{0,61}[a-z0-9])?\/[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?$/;
export const maxFullNameLength = 600;

/**
 * A topic as the broker stores it. Each Component has a space of topics of its own, `NAMESPACE/COMPONENT`, so that the scopes of one Component cannot be
 * passed by another. The full name is `NAMESPACE/COMPONENT|TOPIC`. Topics of earlier versions have no space: they must be adopted by one (`Broker.adopt`).
 */
export interface TopicName {
  /** '': none. */
  readonly space: string;
  readonly topic: string;
}

export const fullNameOf = (space: string, topic: string): string => (space === '' ? topic : `${space}|${topic}`);

export function splitFullName(fullName: string): TopicName {
  const cut = fullName.indexOf('|');
  return cut < 0 ? { space: '', topic: fullName } : { space: fullName.slice(0, cut), topic: fullName.slice(cut + 1) };
}

export function isFullName(fullName: string): boolean {
  const { space, topic } = splitFullName(fullName);
  return (space === '' ? !fullName.includes('|') : spacePattern.test(space)) && topicPattern.test(topic);
}

/** Throws MizzenError for what cannot be the name of a topic. */
export function checkTopicName(fullName: string): void {
  if (isFullName(fullName)) return;
  const { topic } = splitFullName(fullName);
  throw new MizzenError('invalid-topic', topicNameProblem(topicPattern.test(topic) ? fullName : topic));
}

export const topicNameProblem = (topic: string): string =>
  `${JSON.stringify(topic.slice(0, 80))} cannot be the name of a topic: 1 to 200 letters, digits and . _ - : / @`;
