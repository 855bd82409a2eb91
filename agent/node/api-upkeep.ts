/** What the local API says and does about the upkeep of this node: doctor, backup, metrics. */
import { createReadStream, statSync } from 'node:fs'
import type { BlobReader } from '../api/blob-reader.ts'
import type { Status } from '../api/contract.ts'
import type { UpkeepApi } from '../api/upkeep-api.ts'
import type { BackupRequest, DoctorResult } from '../api/upkeep-contract.ts'
import { type BackupSource, clearBackup, makeBackup } from '../backup/make.ts'
import type { NodeView } from '../catalog/nodes.ts'
import type { LoadedConfig } from '../config/config.ts'
import { PUBLICATION_PIN, publicationOf } from '../content/publication-key.ts'
import type { Audit } from '../identity/audit.ts'
import type { Log } from '../log.ts'
import { freeBytesOf } from '../state/disk.ts'
import { VERSION } from '../version.ts'
import type { ClosedNetworks } from './closed-networks.ts'
import type { Content } from './content.ts'
import { doctorOf, type Examined } from './doctor.ts'
import type { Entrance } from './entrance.ts'
import type { NodeMetrics } from './metrics.ts'
import type { OpenNetwork } from './open-network.ts'

type UpkeepDeps = {
  examine: () => Examined
  backup: () => BackupSource
  metrics: Pick<NodeMetrics, 'text'>
  audit: Pick<Audit, 'append'>
  log: Log
}

type NodeParts = Pick<UpkeepDeps, 'metrics' | 'log'> & {
  status: () => Status
  current: { readonly config: LoadedConfig }
  entrance: Pick<Entrance, 'audit'>
  openNetwork: OpenNetwork | undefined
  closed: ClosedNetworks
  content: Pick<Content, 'store' | 'blobs'>
  peerId: string
}

/** Put together of what the node has. */
export function startUpkeep({
  status,
  current,
  entrance,
  content,
  peerId,
  metrics,
  log,
  ...networks
}: NodeParts): NodeUpkeep {
  const { state, name } = current.config.values
  const examine = () => {
    const { warnings, uptimeSeconds, peers, content: room } = status()
    const others = nodesOf(networks).filter((node) => node.peerId !== peerId)
    const versions = others.map(({ version }) => version)
    const hasNix = content.store.isInstalled
    const unheld = unheldIn(content)
    return {
      warnings,
      uptimeSeconds,
      peers,
      hasNix,
      version: VERSION,
      versions,
      content: room,
      freeBytes: freeBytesOf(state),
      unheld,
    }
  }
  const backup = () => ({ directory: state, configFile: current.config.file, node: { version: VERSION, peerId, name } })
  return new NodeUpkeep({ examine, backup, metrics, audit: entrance.audit, log })
}

/** Names of what is published, with blobs that are not here. */
function unheldIn({ blobs: { index } }: Pick<Content, 'blobs'>): string[] {
  const lacking = index.pinReasons(PUBLICATION_PIN).filter((reason) => index.absent(reason).length > 0)
  return lacking.map((reason) => publicationOf(reason.slice(PUBLICATION_PIN.length)).name)
}

/** Each once, however many networks it is in. */
function nodesOf({ openNetwork, closed }: Pick<NodeParts, 'openNetwork' | 'closed'>): NodeView[] {
  const all = [...closed.list().flatMap(({ nodes }) => nodes.list()), ...(openNetwork?.nodes.list() ?? [])]
  return [...new Map(all.map((node) => [node.peerId, node])).values()]
}

class NodeUpkeep implements UpkeepApi {
  readonly #deps: UpkeepDeps

  constructor(deps: UpkeepDeps) {
    this.#deps = deps
    clearBackup(deps.backup().directory)
  }

  async doctor(): Promise<DoctorResult> {
    return { checks: doctorOf(this.#deps.examine()) }
  }

  async metrics(): Promise<{ text: string }> {
    return { text: await this.#deps.metrics.text() }
  }

  async backup({ passphrase }: BackupRequest): Promise<BlobReader> {
    const { audit, log } = this.#deps
    const source = this.#deps.backup()
    const path = await makeBackup(source, passphrase)
    const sizeBytes = statSync(path).size
    audit.append({ event: 'backup.made' })
    log.info({ sizeBytes }, 'backup.made')
    return {
      sizeBytes,
      read: (offset, length, signal) =>
        createReadStream(path, { start: offset, end: offset + length - 1, signal }) as AsyncIterable<Buffer>,
      close: () => clearBackup(source.directory),
    }
  }
}
