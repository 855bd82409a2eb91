/**
 * The keys of what is published here: of the pins of its blobs, and of the store paths that are shared for it. A key says the network that
 * something was published in, and with it who may be given the bytes; it is made and read here only.
 *
 * In the open network it is the name, as it was before there were other networks; in a closed one `<network>/<name>`. No name has a slash.
 */
import { OPEN_NETWORK } from '../../protocols/records/record.ts'

/** Networks are named by their ids in hex. */
export const OPEN_NETWORK_ID: string = Buffer.from(OPEN_NETWORK).toString('hex')

/** Pins of publications begin so; those that hold for other reasons do not. */
export const PUBLICATION_PIN = 'artifact:'
const NETWORK_ID_PATTERN = /^[0-9a-f]{64}$/

export function publicationKey(network: string, name: string): string {
  if (name.includes('/')) throw new TypeError(`${JSON.stringify(name)} is no name of an artifact`)
  return network === OPEN_NETWORK_ID ? name : `${network}/${name}`
}

export function publicationOf(key: string): { network: string; name: string } {
  const slash = key.indexOf('/')
  if (slash < 0) return { network: OPEN_NETWORK_ID, name: key }
  return { network: key.slice(0, slash), name: key.slice(slash + 1) }
}

/**
 * The pin of an image: of a manifest that a tag leads to, and of what it names, in a repository of a network. `space` is that network, or
 * something that is none, and then nobody is given the blobs for it.
 */
export function imageKey(space: string, repository: string, digest: string): string {
  return `image:${space}/${repository}@${digest}`
}

/** What an image's pin was made of; undefined for pins of another kind. */
export function imageOfPin(reason: string): { space: string; repository: string } | undefined {
  const [, space, repository] = /^image:([^/]+)\/([^@]+)@/.exec(reason) ?? []
  return space === undefined || repository === undefined ? undefined : { space, repository }
}

/** The network in which something was published that a blob is pinned for; undefined for pins of another kind. */
export function networkOfPin(reason: string): string | undefined {
  if (reason.startsWith(PUBLICATION_PIN)) return publicationOf(reason.slice(PUBLICATION_PIN.length)).network
  const space = imageOfPin(reason)?.space
  return space !== undefined && NETWORK_ID_PATTERN.test(space) ? space : undefined
}
