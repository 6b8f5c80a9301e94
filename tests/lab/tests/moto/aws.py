"""AWS's own Python SDK, as a witness: what its service models allow, and how its client signs, asks and reads.

    aws.py unknown ACTION        elements of the XML on standard input that EC2's model of ACTION's answer lacks
    aws.py os-users              which of the JSON list on standard input the model's pattern and lengths take
    aws.py presign HOST QUERY    the address of a tunnel, presigned as AWS's command line client does
    aws.py tour URL              asks a server with boto3: pages, a push, who am I, a role; prints JSON
"""

import json
import re
import sys
import xml.etree.ElementTree as ElementTree

import boto3
import botocore.exceptions
import botocore.session
from botocore.config import Config
from botocore.signers import RequestSigner

REGION = "us-west-2"


def unknown(action):
    """Prints paths that the model does not have."""
    model = botocore.session.get_session().get_service_model("ec2")

    def walk(element, shape, path):
        name = element.tag.rsplit("}", 1)[-1]
        path = f"{path}/{name}"
        if shape.type_name == "structure":
            members = {it.serialization.get("name", key): it for key, it in shape.members.items()}
            for child in element:
                child_name = child.tag.rsplit("}", 1)[-1]
                if child_name in members:
                    walk(child, members[child_name], path)
                elif child_name != "requestId":
                    print(f"{path}/{child_name}")
        elif shape.type_name == "list":
            for child in element:
                walk(child, shape.member, path)
        elif shape.type_name == "string" and shape.enum and element.text not in shape.enum:
            print(f"{path} = {element.text}")
        elif shape.type_name == "integer":
            int(element.text)
        elif shape.type_name == "boolean" and element.text not in ("true", "false"):
            print(f"{path} = {element.text}")

    walk(ElementTree.fromstring(sys.stdin.read()), model.operation_model(action).output_shape, "")


def os_users():
    """Prints a JSON list of booleans."""
    model = botocore.session.get_session().get_service_model("ec2-instance-connect")
    shape = model.operation_model("SendSSHPublicKey").input_shape.members["InstanceOSUser"]
    metadata = shape.metadata
    # Python's $ also matches before a last line feed, which the service's does not
    pattern = re.compile(metadata["pattern"].replace("$)", r"\Z)"), re.ASCII)
    users = json.load(sys.stdin)
    json.dump([metadata["min"] <= len(it) <= metadata["max"] and bool(pattern.search(it)) for it in users], sys.stdout)


def presign(host, query):
    """Prints the presigned address."""
    session = botocore.session.get_session()
    service = session.get_service_model("ec2-instance-connect")
    signer = RequestSigner(
        service.service_id,
        REGION,
        service.signing_name,
        service.signature_version,
        session.get_credentials(),
        session.get_component("event_emitter"),
    )
    request = {
        "url": f"ws://{host}/openTunnel?{query}",
        "body": {},
        "headers": {"host": host},
        "method": "GET",
        "query_string": "",
        "url_path": "/",
        "context": {},
    }
    print(signer.generate_presigned_url(request_dict=request, operation_name="openTunnel", expires_in=60))


def tour(url):
    """Asks for everything once."""
    config = Config(retries={"total_max_attempts": 1}, parameter_validation=False)
    session = boto3.Session(region_name=REGION)

    def client(name, source=session):
        return source.client(name, endpoint_url=url, config=config)

    ec2 = client("ec2")
    pages = ec2.get_paginator("describe_instances").paginate(PaginationConfig={"PageSize": 5})
    pages = [[r["Instances"][0] for r in page["Reservations"]] for page in pages]
    instance = pages[0][0]
    push = {
        "InstanceId": instance["InstanceId"],
        "InstanceOSUser": "ec2-user",
        "SSHPublicKey": sys.stdin.read(),
        "AvailabilityZone": instance["Placement"]["AvailabilityZone"],
    }
    eic = client("ec2-instance-connect")

    def error(call):
        try:
            call()
        except botocore.exceptions.ClientError as it:
            return it.response["Error"] | {"Status": it.response["ResponseMetadata"]["HTTPStatusCode"]}
        return None

    role = client("sts").assume_role(RoleArn="arn:aws:iam::210987654321:role/broker", RoleSessionName="lab")
    keys = role["Credentials"]
    there = boto3.Session(keys["AccessKeyId"], keys["SecretAccessKey"], keys["SessionToken"], region_name=REGION)
    answer = {
        "pages": [[it["InstanceId"] for it in page] for page in pages],
        "first": {k: instance[k] for k in ("PrivateIpAddress", "VpcId", "SubnetId", "Tags", "State", "Ipv6Address")},
        "endpoints": [it["DnsName"] for it in ec2.describe_instance_connect_endpoints()["InstanceConnectEndpoints"]],
        "push": eic.send_ssh_public_key(**push)["Success"],
        "bad push": error(lambda: eic.send_ssh_public_key(**push | {"InstanceOSUser": "a b"})),
        "bad look-up": error(lambda: ec2.describe_instances(InstanceIds=["i-0123456789abcdef9"])),
        "account": client("sts").get_caller_identity()["Account"],
        "account there": client("sts", there).get_caller_identity()["Account"],
        "instances there": len(client("ec2", there).describe_instances()["Reservations"]),
    }
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    {"unknown": unknown, "os-users": os_users, "presign": presign, "tour": tour}[command](*arguments)
