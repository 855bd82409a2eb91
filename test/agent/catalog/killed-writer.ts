/**
 * A process that says and accepts records as fast as it can, and prints each one that it was told is stored, until somebody kills it.
 * Arguments: state directory, number of this run.
 */
import { writeSync } from 'node:fs'
import { join } from 'node:path'
import { Artifacts } from '../../../agent/catalog/artifacts.ts'
import { Nodes } from '../../../agent/catalog/nodes.ts'
import { Records } from '../../../agent/catalog/records.ts'
import { ephemeralNodeKey, loadOrMakeNodeKey } from '../../../agent/identity/node-key.ts'
import { openDatabase } from '../../../agent/state/database.ts'
import { fileCid } from '../../../protocols/artifact/artifact.ts'
import { OPEN_NETWORK } from '../../../protocols/records/record.ts'
import { DAY_MS, keptLog, recordBy } from './catalog.ts'

const [directory = '', run = ''] = process.argv.slice(2)
const key = loadOrMakeNodeKey(join(directory, 'node.key'))
const stranger = ephemeralNodeKey()
const db = openDatabase(join(directory, 'state.sqlite'))
const records = new Records(db, { network: OPEN_NETWORK, signer: key, log: keptLog() })
const artifacts = new Artifacts({ db, records, nodes: new Nodes(records) })
const cid = fileCid('00'.repeat(32))

for (let nth = 0; ; nth++) {
  const name = `r${run}n${nth % 50}`
  const { peerId } = artifacts.announce(name, { type: 'file', cid, sizeBytes: nth, description: `run${run} of ${nth}` })
  writeSync(1, `${peerId} ${name} ${nth}\n`)
  const body = { type: 'file', cid, sizeBytes: nth, description: '' }
  const issued = Date.now()
  const record = recordBy(stranger, { kind: 'artifact', name, seq: issued * 100 + nth, issued, leaseMs: DAY_MS, body })
  if (records.accept(record.bytes) === 'new') writeSync(1, `stranger ${name} ${nth}\n`)
  if (nth % 7 === 6) {
    artifacts.withdraw(name)
    writeSync(1, `${peerId} ${name} gone\n`)
  }
}
