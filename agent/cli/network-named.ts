/** Which network somebody means: the one that was named, or the only one there is. */
import type { Client } from '../api/client.ts'
import type { NetworkDetail, NetworkList } from '../api/membership-contract.ts'
import { AgentError } from '../error.ts'

/** @throws {AgentError} `usage` when there is none, or several; what the agent says of one that was named */
export async function networkNamed(client: Client, name: string | undefined): Promise<NetworkDetail> {
  if (name !== undefined) return await client.get<NetworkDetail>(networkPath(name))
  const { networks } = await client.get<NetworkList>('networks')
  const [only, ...others] = networks
  if (only === undefined)
    throw new AgentError('usage', 'this machine is in no network yet', {
      next: 'Make one: agent network create home. Or join one: agent join',
    })
  if (others.length === 0) return only
  throw new AgentError('usage', `this machine is in ${networks.length} networks`, {
    next: `Name one: ${networks.map((one) => one.name).join(', ')}.`,
  })
}

/** Of the API; `network` is a name, or the beginning of an id. */
export function networkPath(network: string): string {
  return `networks/${encodeURIComponent(network)}`
}
