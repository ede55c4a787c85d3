package cloudemu
import (
 _ "github.com/aliyun/alibaba-cloud-sdk-go/services/vpc"
 _ "github.com/aliyun/alibaba-cloud-sdk-go/services/ecs"
 _ "pgregory.net/rapid"
 _ "github.com/vishvananda/netlink"
)
